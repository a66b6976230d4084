"""Makes tests/golden/weights: files written by the reference libraries, small and with values a test can recompute.

    python tests/golden/make_weights.py          (safetensors 0.8.0, torch 2.13, peft 0.21.2; nothing random)

Element i of a float tensor is ((3 i) mod 7 - 3) / 2, of an integer tensor (3 i) mod 7: exact in every type.
"""
import json, os, struct
import torch
from safetensors.torch import save_file
from peft import LoraConfig

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights")

def numbers(shape, dtype):
    n = 1
    for d in shape:
        n *= d
    x = torch.arange(n) * 3 % 7
    return (((x - 3) / 2) if dtype.is_floating_point else x).to(dtype).reshape(shape)

every = {
    "f32": numbers((3, 4), torch.float32), "bf16": numbers((5,), torch.bfloat16),
    "f16": numbers((2, 2, 2), torch.float16),
    "f64": numbers((2,), torch.float64), "i64": numbers((3,), torch.int64), "i32": numbers((3,), torch.int32),
    "i8": numbers((7,), torch.int8), "u8": numbers((3, 1, 1, 3), torch.uint8), "scalar": numbers((), torch.float32),
    "empty": numbers((0, 3), torch.float32),
    'odd "name"\n\té\\\x01': numbers((1,), torch.float32),
}
os.makedirs(HERE + "/sharded", exist_ok=True)
os.makedirs(HERE + "/adapter", exist_ok=True)
save_file(every, HERE + "/every.safetensors", metadata={"format": "pt"})

# an older writer: no metadata, no padding, so the data begin at an odd byte; another order than in the header
head = json.dumps({"b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
                   "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode()
head += b" " * (1 - len(head) % 2)
data = numbers((3,), torch.uint8).numpy().tobytes() + numbers((2,), torch.float32).numpy().tobytes()
open(HERE + "/unaligned.safetensors", "wb").write(struct.pack("<Q", len(head)) + head + data)

names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
shards = [{"a": numbers((2, 2), torch.float32), "b": numbers((3,), torch.bfloat16)},
          {"c": numbers((4,), torch.float16)}]
index = {"metadata": {"total_size": 30}, "weight_map": {k: n for n, s in zip(names, shards) for k in s}}   # 16 + 6 + 8
for n, s in zip(names, shards):
    save_file(s, HERE + "/sharded/" + n, metadata={"format": "pt"})
json.dump(index, open(HERE + "/sharded/model.safetensors.index.json", "w"), indent=2)

LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.05, use_rslora=True, target_modules=["q_proj"],
           base_model_name_or_path="Qwen/Qwen2.5-0.5B").save_pretrained(HERE + "/adapter")
for folder, _, files in os.walk(HERE):
    for f in files:
        os.chmod(os.path.join(folder, f), 0o644)
