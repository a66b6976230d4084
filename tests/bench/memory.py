"""memory.py - peak memory of fine-tuning in each precision, beside what `ftune plan` says

Run:  python3 tests/bench/memory.py [build/ftune]
A random Qwen2-shaped model of 48.6 million parameters (195 MB in f32), 8 rows of 92 tokens, three updates each."""
import json, os, resource, subprocess, sys, tempfile, time

ftune = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build/ftune")
config = dict(model_type="qwen2", vocab_size=8000, hidden_size=768, intermediate_size=2048, num_hidden_layers=6, rope_theta=1e4,
              num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=512, rms_norm_eps=1e-6,
              tie_word_embeddings=True, hidden_act="silu", torch_dtype="float32")
child = ("import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stdout=-3, stderr=-3); "
         "print(r.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")


def peak(*words):
    """Peak resident bytes of one command, and its seconds."""
    begin = time.time()
    status, kib = subprocess.run([sys.executable, "-c", child, ftune, *words], capture_output=True, text=True).stdout.split()
    assert status == "0", words
    return int(kib) * 1024, time.time() - begin


with tempfile.TemporaryDirectory() as tmp:
    os.chdir(tmp)
    json.dump(config, open("config.json", "w"))
    subprocess.run([ftune, "init", "--config", "config.json", "--seed", "1", "--out", "m"], check=True, stderr=subprocess.DEVNULL)
    rows = [json.dumps({"query": "Count " + "x" * 40 + str(i), "response": "The answer is " + str(i) * 30}) for i in range(8)]
    open("d.jsonl", "w").write("\n".join(rows))
    chat = ["--tokenizer", "bytes", "--template", "default-generation"]
    open("in", "w").write(subprocess.run([ftune, "encode", *chat, "d.jsonl"], capture_output=True, text=True).stdout)
    print("%-26s %10s %10s %10s %10s %8s" % ("", "weights MB", "score MB", "sft MB", "plan MB", "sft s"))
    for how in ("", "--dtype bf16", "--quant int8", "--quant nf4", "--quant nf4 --dtype bf16", "--freeze 0.5", "--full"):
        words = how.split()
        plan = json.loads(subprocess.run([ftune, "plan", "--model", "m", "--json", "--batch", "8", "--max-length", "92", *words],
                                         capture_output=True, text=True).stdout)
        score = 0 if "--f" in how else peak("score", "--model", "m", *words, "in")[0]
        sft, seconds = peak("sft", "--model", "m", *chat, "--data", "d.jsonl", "--out", "o", "--steps", "3", "--batch", "8", *words)
        print("%-26s %10.1f %10.1f %10.1f %10.1f %8.1f" % (how or "LoRA, f32", (plan["weights"] + plan["packed"]) / 1e6, score / 1e6,
                                                          sft / 1e6, plan["peak"] / 1e6, seconds))
