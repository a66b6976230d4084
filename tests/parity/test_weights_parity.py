"""Do safetensors, Transformers and PEFT read what tests/test_04_weights.c writes under build/tmp/weights?

    make test-parity, or build/venv/bin/python tests/parity/test_weights_parity.py from the repository's root
"""
import json, subprocess, sys
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from peft import PeftConfig, LoraConfig, get_peft_model
import torch

TMP = "build/tmp/weights/"
counts = [0, 0]

def check(ok, what):
    counts[not ok] += 1
    if not ok:
        print("FAIL " + what)

subprocess.run(["make", "-s", "build/tests/test_04_weights"], check=True)
subprocess.run(["build/tests/test_04_weights"], check=True, stdout=subprocess.DEVNULL)

golden = "tests/golden/weights/every.safetensors"
with safe_open(golden, "pt") as a, safe_open(TMP + "one-again.safetensors", "pt") as b:
    same = a.keys() == b.keys() and all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys())
    check(same and b.metadata() == {"format": "pt"}, "every.safetensors written again")

parameters = {0: 494032768}
for i in range(5):
    folder = TMP + "config-%d" % i
    c = AutoConfig.from_pretrained(folder)
    mine = json.load(open(folder + "/config.json"))
    rope = getattr(c, "rope_parameters", None) or {}
    plain = rope.get("rope_type", "default") == "default"
    theirs = dict(c.to_dict(), rope_theta=rope.get("rope_theta", getattr(c, "rope_theta", None)),
                  rope_scaling=None if plain else {k: v for k, v in rope.items() if k != "rope_theta"})
    for k, v in mine.items():
        if k != "torch_dtype":
            check(theirs.get(k) == v, "%s %s: wrote %r, Transformers has %r" % (folder, k, v, theirs.get(k)))
    check(str(c.dtype).replace("torch.", "") == mine["torch_dtype"], folder + " dtype")
    with torch.device("meta"):
        m = AutoModelForCausalLM.from_config(c)
    if i in parameters:
        check(sum(p.numel() for p in m.parameters()) == parameters[i], "parameters of %s" % folder)

for folder in ("adapter", "adapter-2/deep"):
    c = PeftConfig.from_pretrained(TMP + folder)
    mine = json.load(open(TMP + folder + "/adapter_config.json"))
    check(isinstance(c, LoraConfig) and set(c.target_modules) == set(mine["target_modules"]), folder + ": targets")
    same = all(getattr(c, k) == mine[k] for k in ("r", "lora_alpha", "use_rslora", "lora_dropout"))
    check(same, folder + ": numbers")
    text = open(TMP + folder + "/adapter_config.json", encoding="utf-8").read()
    peft = json.dumps(mine, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    check(peft == text, folder + ": written as PEFT writes")
with torch.device("meta"):
    m = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TMP + "config-0"))
    m = get_peft_model(m, PeftConfig.from_pretrained(TMP + "adapter"))
n = sum(p.numel() for k, p in m.named_parameters() if "lora_" in k)
check(n == 4399104, "all-linear on Qwen2.5-0.5B: 4,399,104 trainable parameters, PEFT attaches %d" % n)
print("%d passed, %d failed, 0 skipped" % tuple(counts))
sys.exit(counts[1] != 0)
