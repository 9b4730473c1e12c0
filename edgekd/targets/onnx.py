suffix=".onnx"; extra="onnx"; distributions=("onnx",); accepts=frozenset({"fp32","w8a8"}); slow=False; benchable=True
