#!/usr/bin/env python3
"""Makes tests/golden/model: a tiny Qwen2 with a LoRA adapter, and what PyTorch and PEFT compute with it.

    python tests/golden/make_model.py        (torch 2.13.0, transformers 5.23.0, peft 0.21.2; seed 11; takes seconds)

model.safetensors, config.json        the base, f32, written by Transformers
adapter_model.safetensors, adapter_config.json      rank 3 on all seven projections, B not zero, written by PEFT
expected.safetensors                  rowI.input_ids, rowI.labels (as floats); logits of the rows end to end, with the
                                      adapter; grad.<PEFT's key> of the mean loss; losses and norms of ten AdamW
                                      updates with all rows (lr 0.02, weight decay 0.01, clipping at 1)
"""
import os, shutil, sys
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(OUT)), "parity"))
from test_model_parity import TARGETS, logits_of, loss_of, make_rows, peft_key, steps_of

torch.manual_seed(11)
config = Qwen2Config(vocab_size=43, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
                     num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, rope_theta=1e4,
                     rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, pad_token_id=None)
model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
with torch.no_grad():
    for k, p in model.named_parameters():
        p.normal_(1.0 if "norm" in k else 0.0, 0.3)
shutil.rmtree(OUT, ignore_errors=True)
model.save_pretrained(OUT)
lora = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, task_type="CAUSAL_LM",
                                        base_model_name_or_path="tests/golden/model"))
with torch.no_grad():
    for k, p in lora.named_parameters():
        if "lora_B" in k:
            p.normal_(0, 0.1)
lora.peft_config["default"].base_model_name_or_path = "tests/golden/model"
lora.save_pretrained(OUT)
for name in ("README.md", "generation_config.json"):
    if os.path.exists(f"{OUT}/{name}"):
        os.remove(f"{OUT}/{name}")
rows = make_rows(np.random.default_rng(3), 43, [7, 2, 13, 5])
expected = {}
for i, (ids, labels) in enumerate(rows):
    expected[f"row{i}.input_ids"] = torch.tensor(ids).float()
    expected[f"row{i}.labels"] = torch.tensor(labels).float()
expected["logits"] = torch.tensor(logits_of(lora, rows))
loss_of(lora, rows).backward()
for k, p in lora.named_parameters():
    if p.grad is not None:
        expected["grad." + peft_key(k)] = p.grad.clone()
steps = steps_of(lora, rows, 10, 0.02, 0.01)
expected["losses"] = torch.tensor(steps[:, 0].copy()).float()
expected["norms"] = torch.tensor(steps[:, 1].copy()).float()
save_file(expected, f"{OUT}/expected.safetensors", metadata={"format": "pt"})
print(steps, {f: os.path.getsize(f"{OUT}/{f}") for f in os.listdir(OUT)})
