"""The ONNX graph of an export, run by onnxruntime, against the model that transformers loads."""

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModel

from bali_ds.errors import InputError
from bali_ds.export import onnx
from bali_ds.export.export_run import export_run
from bali_ds.inference.exported_directory import EXPORT


def test_the_graph_computes_what_transformers_loads(run_of, tmp_path):
    report = export_run(run_of("0-fp32"), tmp_path / "out", onnx=True)
    assert "onnx/model.onnx" in report["files"]
    assert EXPORT.foreign_file(tmp_path / "out") is None
    session = onnxruntime.InferenceSession(tmp_path / "out/onnx/model.onnx", providers=["CPUExecutionProvider"])
    model = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    for rows, width in ((1, 1), (3, 16), (7, 5)):
        tokens = np.random.default_rng(width).integers(40, size=(rows, width))
        mask = np.ones_like(tokens)
        mask[0, width // 2 + 1 :] = 0
        found, _ = session.run(None, {"input_ids": tokens, "attention_mask": mask})
        with torch.inference_mode():
            expected = model(torch.from_numpy(tokens), torch.from_numpy(mask)).last_hidden_state.numpy()
        assert np.abs(found - expected)[mask == 1].max() < 1e-5


def test_a_graph_that_differs_is_not_published(run_of, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="differs from torch"):
        export_run(run_of("0-fp32"), tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()
