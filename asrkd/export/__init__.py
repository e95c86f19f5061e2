"""The student as graphs that other engines run: ONNX with explicit state, and sherpa-onnx's streaming contract."""
