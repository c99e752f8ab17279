"""Compiled layers: the same numbers, a few graphs for all lengths. The back end that writes C++ is not needed here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from torch._dynamo.utils import counters
from torch.testing import assert_close
from transformers import PreTrainedModel

from pipelines.errors import UserError
from train.batches import Document, collate
from train.model import Recompute, batch_logprobs, compile_layers, load_model

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own look at a tensor


def logprobs_and_gradients(model: PreTrainedModel, lengths: tuple[int, ...]) -> list[Tensor]:
    documents = [Document("d", np.arange(2, length + 2, dtype=np.int32), np.arange(length) > 0) for length in lengths]
    model.zero_grad()
    logprobs_M, _ = batch_logprobs(model, collate(documents))
    logprobs_M.sum().backward()
    return [logprobs_M.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize(("architecture", "recompute"), [("phi3", "full"), ("llama", "selective")])
def test_compiled_layers_have_the_same_logprobs_and_gradients(tmp_path: Path, architecture: str, recompute: Recompute):
    path = str(tiny_model(tmp_path / "m", architecture))
    plain, compiled = (load_model(path, max_length=256, recompute=recompute) for _ in range(2))
    compile_layers(compiled, backend="aot_eager")
    graphs = []
    for lengths in ((40, 35), (200,), (64, 64, 30, 7)):
        for ours, expected in zip(
            logprobs_and_gradients(compiled, lengths), logprobs_and_gradients(plain, lengths), strict=True
        ):
            assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] <= 8, "other lengths and numbers of documents need no other graphs"


def test_without_a_compiler_it_is_one_sentence(tmp_path: Path):
    model = load_model(str(tiny_model(tmp_path / "m")), max_length=64)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match="needs a C\\+\\+ compiler"),
    ):
        compile_layers(model)


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch._dynamo.reset()
    counters.clear()
