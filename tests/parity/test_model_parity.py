#!/usr/bin/env python3
"""ftune's model against Transformers and PEFT, on tiny random models.

    python tests/parity/test_model_parity.py [path of the model driver]

Needs torch, transformers, peft, safetensors (tests/parity/requirements.txt). Builds tests/parity/model.c when no driver
is given. Compared in f32: logits (max abs 1e-4, same argmax), gradients of every lora_A and lora_B and of every weight in
full training (relative by norm 1e-4), ten AdamW steps (loss 1e-4), adapters and models written here and loaded there and
the reverse, merge. Prints one line per comparison; exit status 1 when one fails.
"""
import json, os, struct, subprocess, sys, tempfile
import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(2)
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
FAILED = PASSED = 0

CONFIGS = {
    "qwen2 tied gqa": dict(model_type="qwen2", vocab_size=131, hidden_size=48, intermediate_size=72, num_hidden_layers=3,
                           num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e6,
                           max_position_embeddings=512, rms_norm_eps=1e-6),
    "qwen2 untied mha": dict(model_type="qwen2", vocab_size=97, hidden_size=40, intermediate_size=52, num_hidden_layers=2,
                             num_attention_heads=5, num_key_value_heads=5, tie_word_embeddings=False, rope_theta=1e4,
                             max_position_embeddings=512, rms_norm_eps=1e-6),
    "llama gqa": dict(model_type="llama", vocab_size=131, hidden_size=48, intermediate_size=72, num_hidden_layers=3,
                      num_attention_heads=6, num_key_value_heads=3, tie_word_embeddings=False, rope_theta=1e4,
                      max_position_embeddings=512, rms_norm_eps=1e-5),
    "llama biases head_dim": dict(model_type="llama", vocab_size=77, hidden_size=24, intermediate_size=36, num_hidden_layers=2,
                                  num_attention_heads=3, num_key_value_heads=1, head_dim=10, tie_word_embeddings=True,
                                  attention_bias=True, mlp_bias=True, max_position_embeddings=512, rms_norm_eps=1e-5),
    "llama3 rope": dict(model_type="llama", vocab_size=131, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, rope_theta=5e3,
                        max_position_embeddings=512, rms_norm_eps=1e-5,
                        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                          original_max_position_embeddings=64)),
    "llama linear rope": dict(model_type="llama", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, rope_theta=1e4,
                              max_position_embeddings=512, rms_norm_eps=1e-5, rope_scaling=dict(rope_type="linear", factor=4.0)),
    "mistral": dict(model_type="mistral", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, rope_theta=1e4, sliding_window=None,
                    max_position_embeddings=512, rms_norm_eps=1e-5),
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def check(name, ok, detail):
    global FAILED, PASSED
    PASSED, FAILED = PASSED + bool(ok), FAILED + (not ok)
    print(f"{'ok  ' if ok else 'FAIL'} {name}: {detail}", flush=True)


def run(*args):
    r = subprocess.run([DRIVER, *map(str, args)], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f"{args}: {r.stderr}")
    return r.stdout


def make_rows(rng, V, lengths):
    rows = []
    for n in lengths:
        ids = rng.integers(0, V, n).tolist()
        k = int(rng.integers(1, n))                              # the prompt teaches nothing
        labels = [-100] * k + ids[k:]
        if n > 6:
            labels[-2] = -100                                    # nor does something in the middle
        rows.append((ids, labels))
    return rows


def write_rows(path, rows):
    with open(path, "wb") as f:
        f.write(struct.pack("<i", len(rows)))
        for ids, labels in rows:
            f.write(struct.pack("<i", len(ids)) + np.array(ids + labels, "<i4").tobytes())


def loss_of(model, rows):
    """Mean over all targets, one row at a time: no padding that could matter."""
    total, n = 0.0, 0
    for ids, labels in rows:
        z = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(z, torch.tensor(labels[1:]), ignore_index=-100, reduction="sum")
        n += sum(x != -100 for x in labels[1:])
    return total / n


def logits_of(model, rows):
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids, _ in rows]).numpy()


def our_logits(model, adapter, rows_file, out, V):
    run(model, adapter, rows_file, out, "logits")
    return np.fromfile(f"{out}/logits.bin", "<f4").reshape(-1, V)


def compare_logits(name, a, b):
    check(name, np.abs(a - b).max() <= 1e-4 and (a.argmax(1) == b.argmax(1)).all(), f"max abs {np.abs(a - b).max():.2e}")


def compare_grads(name, ours, theirs):
    missing = sorted(set(theirs) ^ set(ours))
    worst, where = max((((ours[k] - g).norm() / (g.norm() + 1e-12)).item(), k) for k, g in theirs.items() if k in ours)
    check(name, not missing and worst <= 1e-4, f"{len(theirs)} tensors, worst relative {worst:.2e} ({where}), names that differ: {missing[:3]}")


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def peft_key(name):
    return name.replace(".default", "")


def steps_of(model, rows, n, lr, decay):
    groups = [{"params": [p for k, p in model.named_parameters() if p.requires_grad and not (k.endswith("bias") or "norm" in k)],
               "weight_decay": decay},
              {"params": [p for k, p in model.named_parameters() if p.requires_grad and (k.endswith("bias") or "norm" in k)],
               "weight_decay": 0.0}]
    opt = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for _ in range(n):
        opt.zero_grad()
        loss = loss_of(model, rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        opt.step()
        losses.append((loss.item(), norm.item()))
    return np.array(losses)


def compare_steps(name, text, theirs):
    ours = np.array([[float(x) for x in line.split()] for line in text.strip().splitlines()])
    d = np.abs(ours[:, 0] - theirs[:, 0]).max()
    r = np.abs(ours[:, 1] / theirs[:, 1] - 1).max()
    check(name, d <= 1e-4 and r <= 1e-3, f"loss {theirs[0,0]:.4f} -> {theirs[-1,0]:.4f}, max difference {d:.2e}, gradient norm {r:.2e}")


def one(title, config, tmp):
    V = config["vocab_size"]
    rng = np.random.default_rng(5)
    long = [150] if "rope" in title else []
    rows = make_rows(rng, V, [9, 17, 5, 2, 30] + long)
    rows_file = f"{tmp}/rows.bin"
    write_rows(rows_file, rows)
    torch.manual_seed(3)
    for sub in ("hf", "ours", "out", "merged", "full"):
        os.makedirs(f"{tmp}/{sub}", exist_ok=True)

    # their model, our logits; weights larger than usual so that attention is not flat
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="eager").float()
    with torch.no_grad():
        for k, p in hf.named_parameters():
            p.normal_(1.0 if "norm" in k else 0.0, 0.2)
    hf.save_pretrained(f"{tmp}/hf")
    hf = load(f"{tmp}/hf")
    compare_logits(f"{title}: logits f32", our_logits(f"{tmp}/hf", "-", rows_file, f"{tmp}/out", V), logits_of(hf, rows))
    for dtype in (torch.bfloat16, torch.float16):
        d = f"{tmp}/{str(dtype)[6:]}"
        AutoModelForCausalLM.from_pretrained(f"{tmp}/hf", dtype=dtype).save_pretrained(d)
        compare_logits(f"{title}: logits of {str(dtype)[6:]} weights", our_logits(d, "-", rows_file, f"{tmp}/out", V), logits_of(load(d), rows))

    # their adapter, our gradients and steps
    lora = get_peft_model(load(f"{tmp}/hf"), LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for k, p in lora.named_parameters():
            if "lora_B" in k:
                p.normal_(0, 0.1)
    lora.save_pretrained(f"{tmp}/peft")
    compare_logits(f"{title}: PEFT's adapter here", our_logits(f"{tmp}/hf", f"{tmp}/peft", rows_file, f"{tmp}/out", V), logits_of(lora, rows))
    loss = loss_of(lora, rows)
    loss.backward()
    ours = float(run(f"{tmp}/hf", f"{tmp}/peft", rows_file, f"{tmp}/out", "grads"))
    check(f"{title}: loss", abs(ours - loss.item()) <= 1e-5 * abs(loss.item()), f"{ours:.7f} and {loss.item():.7f}")
    compare_grads(f"{title}: adapter gradients", load_file(f"{tmp}/out/grads.safetensors"),
                  {peft_key(k): p.grad for k, p in lora.named_parameters() if p.grad is not None})
    text = run(f"{tmp}/hf", f"{tmp}/peft", rows_file, f"{tmp}/trained", "steps", 10, 1e-2, 0.01)
    compare_steps(f"{title}: ten steps", text, steps_of(lora, rows, 10, 1e-2, 0.01))

    # our trained adapter, loaded by PEFT
    back = PeftModel.from_pretrained(load(f"{tmp}/hf"), f"{tmp}/trained")
    keys = load_file(f"{tmp}/trained/adapter_model.safetensors")
    theirs = {peft_key(k): p for k, p in back.named_parameters() if "lora_" in k}
    same = set(keys) == set(theirs) and all(torch.equal(keys[k], theirs[k]) for k in keys)
    check(f"{title}: our adapter in PEFT", same, f"{len(keys)} tensors, {len(set(theirs) - set(keys))} missing, {len(set(keys) - set(theirs))} unexpected")
    compare_logits(f"{title}: logits with it", our_logits(f"{tmp}/hf", f"{tmp}/trained", rows_file, f"{tmp}/out", V), logits_of(back, rows))
    run(f"{tmp}/hf", f"{tmp}/trained", "-", f"{tmp}/merged", "merge")
    compare_logits(f"{title}: our merged model there", logits_of(load(f"{tmp}/merged"), rows), logits_of(back, rows))

    # full training
    full = load(f"{tmp}/hf")
    loss = loss_of(full, rows)
    loss.backward()
    run(f"{tmp}/hf", "full", rows_file, f"{tmp}/out", "grads")
    compare_grads(f"{title}: gradients of every weight", load_file(f"{tmp}/out/grads.safetensors"),
                  {k: p.grad for k, p in full.named_parameters() if p.grad is not None})
    text = run(f"{tmp}/hf", "full", rows_file, f"{tmp}/full", "steps", 10, 1e-3, 0.1)
    compare_steps(f"{title}: ten full steps", text, steps_of(full, rows, 10, 1e-3, 0.1))
    compare_logits(f"{title}: model trained here, loaded there", logits_of(load(f"{tmp}/full"), rows), logits_of(full, rows))

    # our random model and adapter
    json.dump(json.load(open(f"{tmp}/hf/config.json")), open(f"{tmp}/config.json", "w"))
    run(f"{tmp}/config.json", "-", "-", f"{tmp}/ours", "init")
    model, info = AutoModelForCausalLM.from_pretrained(f"{tmp}/ours", dtype=torch.float32, output_loading_info=True)
    bad = [k for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[k]]
    std = np.mean([p.detach().std().item() for k, p in model.named_parameters() if p.dim() == 2])
    check(f"{title}: our random model there", not bad and abs(std - 0.02) < 0.001, f"loading complaints {bad}, standard deviation {std:.4f}")
    with_adapter = PeftModel.from_pretrained(model.eval(), f"{tmp}/ours/adapter")
    compare_logits(f"{title}: with our adapter", our_logits(f"{tmp}/ours", f"{tmp}/ours/adapter", rows_file, f"{tmp}/out", V), logits_of(with_adapter, rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        DRIVER = os.path.abspath(sys.argv[1])
    else:
        DRIVER = os.path.join(ROOT, "build", "parity_model")
        subprocess.check_call(["cc", "-std=c99", "-O2", "-march=native", "-fopenmp", "-I", ROOT, os.path.join(HERE, "model.c"),
                               "-o", DRIVER, "-lm"])
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {__import__('peft').__version__}")
    for title, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as tmp:
            one(title, config, tmp)
    print(f"{PASSED} passed, {FAILED} failed, 0 skipped")
    sys.exit(FAILED != 0)
