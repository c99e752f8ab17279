"""An S3-compatible server for tests: moto's, in a process of its own, with one bucket."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from s3fs import S3FileSystem

_SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""

BUCKET = "versions"


@contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """The environment with which S3 clients, of this process or another, find the server."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        port = server.stdout.readline().strip()
        assert port, "moto's server did not start"
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        S3FileSystem.clear_instance_cache()  # one that an earlier server was asked through keeps its address
        try:
            client = boto3.client("s3")
            client.create_bucket(Bucket=BUCKET)
            client.close()
            yield environment
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            server.stdin.close()
            server.wait(timeout=30)
