"""Fine-tuning against rounding: the rounding is the engine's, and the int8 student comes nearer to the float32 one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet

from asrkd.data.batching import load_batch
from asrkd.export.check import quantise, reference_log_probs
from asrkd.export.finetune import finetune, rounding
from asrkd.export.run import ExportedStudent
from asrkd.export.write import export
from asrkd.models.conformer import StreamingConformer
from tests.export.made import student

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")


def test_finetuning_brings_int8_nearer_to_float32(prepared: Path, tmp_path: Path) -> None:
    model = student()
    with torch.no_grad():
        # Some inputs weigh 25 times as much as others: what a grid of 255 steps a channel is bad at.
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear) and layer is not model.ctc_head:
                layer.weight[:, ::9] *= 25
    cuts = CutSet.from_file(prepared / "cuts_test-clean.jsonl.gz")
    train = CutSet.from_file(prepared / "cuts_train.jsonl.gz")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = finetune(model, train, steps=40, peak_lr=1e-4, max_duration_s=20)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(tuned.state_dict()) == set(before)

    def divergence(source: StreamingConformer, name: str) -> float:
        """Mean KL of float32 from int8, as onnxruntime computes it, over test utterances that were not trained on."""
        export(source, tmp_path / name, "onnx")
        quantise(tmp_path / name, tmp_path / f"{name}8")
        eight, total, frames = ExportedStudent(tmp_path / f"{name}8"), 0.0, 0
        for cut in list(cuts)[:6]:
            audio = load_batch(CutSet.from_cuts([cut]), None).audio[0].numpy()
            said = reference_log_probs(model, audio, eight)
            total += float((np.exp(said) * (said - eight.log_probs(audio))).sum())
            frames += len(said)
        return total / frames

    assert divergence(tuned, "tuned") < 0.7 * divergence(model, "plain")


def test_rounding_is_onnxruntimes(tmp_path: Path) -> None:
    """One matrix product in the arithmetic that is trained against, beside onnxruntime's own."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(24, 40, bias=False), torch.randn(7, 24) + 0.3
    with rounding(layer):
        ours = layer(x).detach()
    exact = layer(x).detach()
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [7, 24])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [7, 40])],
        [onnx.numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    onnx.save(proto, tmp_path / "a.onnx")
    quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx", weight_type=QuantType.QInt8, per_channel=True)
    theirs = onnxruntime.InferenceSession(tmp_path / "b.onnx").run(None, {"x": x.numpy()})[0]
    assert np.abs(exact.numpy() - theirs).max() > 0
    assert np.abs(ours.numpy() - theirs).max() < 0.2 * np.abs(exact.numpy() - theirs).max()
