#!/usr/bin/env python3
"""LoRA over a base held in bf16, int8 and NF4, against PyTorch + PEFT over the same base dequantised by bitsandbytes.

    python tests/parity/test_quantize_parity.py [path of ftune]

Compared: mean loss of the rows (1e-5) and the gradient of every lora_A and lora_B (relative by norm 1e-4); merging into
the quantised base (max abs 1e-6); and the bytes that bitsandbytes and ftune plan need. Exit status 1 when one fails.
"""
import json, os, subprocess, sys, tempfile
import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

try:
    import bitsandbytes.functional as bnb
except ImportError:
    print("SKIP bitsandbytes is not installed\n0 passed, 0 failed, 1 skipped")
    sys.exit(0)

transformers.logging.set_verbosity_error()
torch.set_num_threads(2)
FTUNE = sys.argv[1] if len(sys.argv) > 1 else "build/ftune"
FAILED = PASSED = 0
DIFFERENT = []
CONFIG = dict(model_type="qwen2", vocab_size=131, hidden_size=52, intermediate_size=75, num_hidden_layers=3,     # no multiple
              num_attention_heads=6, num_key_value_heads=2, head_dim=10, tie_word_embeddings=True, rope_theta=1e6,  # of 64
              max_position_embeddings=512, rms_norm_eps=1e-6)
HOW = {"bf16": ["--dtype", "bf16"], "int8": ["--quant", "int8"], "nf4": ["--quant", "nf4"]}


def check(name, ok, detail):
    global FAILED, PASSED
    PASSED, FAILED = PASSED + bool(ok), FAILED + (not ok)
    print(f"{'ok  ' if ok else 'FAIL'} {name}: {detail}", flush=True)


def ftune(*args):
    r = subprocess.run([FTUNE, *map(str, args)], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f"{args}: {r.stderr}")
    return r.stdout


def narrow(w, how):
    """There and back, and how many bytes there."""
    if how == "bf16":
        return w.bfloat16().float(), 2 * w.numel()
    if how == "int8":
        code, scale, _ = bnb.int8_vectorwise_quant(w)
        return bnb.int8_vectorwise_dequant(code, scale), code.nbytes + scale.nbytes
    code, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
    _, single = bnb.quantize_4bit(w, blocksize=64, compress_statistics=False, quant_type="nf4")
    x = torch.cat([b / b.abs().max() for b in (single.absmax - state.offset).split(256)])
    levels = state.state2.code
    nearest = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)        # bitsandbytes looks its codes up in a table that is
    differ = nearest != state.absmax                                    # right but for 2e-5 around the middle of two levels
    assert (x - (levels[nearest] + levels[state.absmax.int()]) / 2)[differ].abs().lt(3e-5).all()
    DIFFERENT.append(differ.float().mean().item())
    state.absmax = nearest.to(torch.uint8)
    size = code.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes + state.state2.code.nbytes
    return bnb.dequantize_4bit(code, state), size


with tempfile.TemporaryDirectory() as tmp:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=torch.float32)
    for p in model.parameters():
        p.data += torch.randn_like(p) * (0.1 if p.dim() > 1 else 0.2)
    model.save_pretrained(f"{tmp}/base")
    original = {n: p.detach().clone() for n, p in model.named_parameters()}
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for n, p in peft.named_parameters():
        if "lora_" in n:
            p.data = torch.randn_like(p) * 0.1
    peft.save_pretrained(f"{tmp}/adapter")
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 131, n).tolist() for n in (17, 5, 40)]
    with open(f"{tmp}/rows", "w") as f:
        for ids in rows:
            f.write(json.dumps({"input_ids": ids, "labels": [-100] * 3 + ids[3:]}) + "\n")
    for how, options in HOW.items():
        size = 0
        for n, p in peft.named_parameters():
            if "lora_" in n:
                continue
            name = n.replace("base_model.model.", "", 1).replace(".base_layer", "")
            projection = p.dim() == 2 and "proj" in n
            p.data, narrowed = narrow(original[name], how) if how == "bf16" or projection else (original[name].clone(), p.nbytes)
            size += narrowed
        peft.zero_grad()
        n = sum(len(ids) - 3 for ids in rows)
        loss = sum(torch.nn.functional.cross_entropy(peft(input_ids=torch.tensor([ids])).logits[0, 2:-1], torch.tensor(ids[3:]),
                                                     reduction="sum") for ids in rows) / n
        loss.backward()
        out = [json.loads(line) for line in ftune("score", "--model", f"{tmp}/base", "--adapter", f"{tmp}/adapter", *options,
                                                  f"{tmp}/rows").splitlines()]
        ours = sum(o["loss"] * o["n"] for o in out) / n
        check(f"{how}: loss", abs(ours - loss.item()) < 1e-5, f"{ours:.7f}, PyTorch {loss.item():.7f}")
        ftune("grads", "--model", f"{tmp}/base", "--adapter", f"{tmp}/adapter", "--out", f"{tmp}/g.safetensors", *options, f"{tmp}/rows")
        g, worst = load_file(f"{tmp}/g.safetensors"), 0.0
        for name, p in peft.named_parameters():
            if "lora_" in name:
                a, b = g[name.replace(".default", "")], p.grad
                worst = max(worst, ((a - b).norm() / (b.norm() + 1e-12)).item())
        check(f"{how}: gradients", worst < 1e-4, f"relative {worst:.1e}, {len(g)} tensors")
        plan = json.loads(ftune("plan", "--model", f"{tmp}/base", "--json", *options))
        check(f"{how}: bytes", abs(plan["weights"] - size) < 0.02 * size, f"{plan['weights']}, bitsandbytes {size}")
        if how == "bf16":
            continue                                    # there --dtype is the type of the merged file
        ftune("merge", "--model", f"{tmp}/base", "--adapter", f"{tmp}/adapter", "--out", f"{tmp}/merged", *options)
        merged, worst = load_file(f"{tmp}/merged/model.safetensors"), 0.0
        for name, module in peft.named_modules():
            if hasattr(module, "get_delta_weight"):
                w = module.base_layer.weight + module.get_delta_weight("default")
                worst = max(worst, (merged[name.replace("base_model.model.", "", 1) + ".weight"] - w).abs().max().item())
        check(f"{how}: merged into the dequantised base", worst < 1e-6, f"max abs {worst:.1e}")
check("nf4: codes of scales that are not bitsandbytes' own", max(DIFFERENT) < 0.05, f"{100 * np.mean(DIFFERENT):.2f} %")
print(f"{PASSED} passed, {FAILED} failed, 0 skipped")
sys.exit(FAILED > 0)
