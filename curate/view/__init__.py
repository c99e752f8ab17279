"""`curate view`: a local web page to read problems and traces."""
