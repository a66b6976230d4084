"""Named loss scales and the loss / loss_scale of single messages: `ftune encode --swift 3` against ms-swift itself, run live.

    make test-parity, or build/venv/bin/python tests/parity/test_loss_scale_parity.py [--n ROWS] [--seed N]

The original is ms-swift 4.6.0, unpacked without its dependencies into build/ms_swift (FTUNE_MS_SWIFT names another folder); it
is skipped when it is not there. Only its template and loss-scale modules are loaded: what they import from elsewhere and
do not need for text is replaced by empty stand-ins. Templates come from swift/templates.json (FTUNE_SHARED, default ../shared).
"""
import argparse, importlib, json, logging, os, random, subprocess, sys, types

FTUNE = os.environ.get("FTUNE", "build/ftune")
SHARED = os.environ.get("FTUNE_SHARED") or "../shared"
ORIGINAL = os.environ.get("FTUNE_MS_SWIFT", "build/ms_swift")
TEMPLATES = ["qwen", "llama3", "default", "default-generation", "zephyr", "deepseek", "telechat", "gemma"]
BASES = ["default", "last_round", "all"]
NAMES = ["react", "hermes", "qwen", "agentflan", "alpha_umi", "ignore_empty_think", "ignore_think_prefix", "base"]
WORDS = ["Thought:", "Action:", "Action Input:", "Observation:", "Final Answer:", "Next:", "Name:", "ACTION:", "Tool:", "Command",
         "Arguments:", "action input", "ACTION_INPUT:", "✿FUNCTION✿:", "✿ARGS✿:", "✿RETURN✿:", "✿RESULT✿:", "✿FUNCTION✿",
         "<tool_call>", "</tool_call>", "<tool_call></tool_call>", "<tool_call>\n{}\n</tool_call>", "<think>", "</think>",
         "<think>\n\n</think>\n\n", "<think></think>", "</mm:think>", "<|channel>thought\n<channel|>", "Action", "Act", ":", "n:",
         " ", "\n", "\n\n", "\t", "\u00a0", "\u2003", "\u3000", "\x1c", "\x1f", "\x85", "\u200b", "\ufeff", "杭州", "😱", "é", "get {}",
         "20C", "done", "observation:", "<seed:think>",
         "<seed:think><seed:cot_budget_reflect>The current thinking budget is 0, so I will directly start answering the "
         "question.</seed:cot_budget_reflect>\n</seed:think>",
         "<seed:think><seed:cot_budget_reflect>The current thinking budget is 0, so I will directly start answering the "
         "question。</seed:cot_budget_reflect>\n</seed:think> "]
QUESTIONS = ["hi", "How are you?", "", "What is the tool you want to use?", "What is the value of x", "What is the value", "\n",
             "What are the required parameter names for this tool", "Action: x\nObservation: y", "<think>\n\n</think>q",
             "what is the value of", "天气"]
counts = [0, 0]


def check(ok, what, detail=""):
    counts[not ok] += 1
    if not ok and counts[1] <= 5:
        print("FAIL %s\n    %s" % (what, detail))


# -- the original ------------------------------------------------------------------------------------------------------

def load_original(root):
    """Its Template, TemplateMeta and StdTemplateInputs, without the models, trainers and hubs around them."""
    class Empty(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    def package(name):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = [os.path.join(root, *name.split("."))]
        return module

    for name in ("modelscope", "modelscope.hub", "modelscope.hub.utils", "modelscope.hub.utils.utils",
                 "swift.template.vision_utils", "swift.agent_template", "swift.utils"):
        sys.modules[name] = Empty(name)
    package("swift")
    sys.modules["swift.utils"].get_logger = logging.getLogger
    sys.modules["swift.utils"].get_env_args = lambda *a: a[-1]
    sys.modules["swift.utils"].retry_decorator = lambda *a, **k: lambda f: f
    template, utils = package("swift.template"), importlib.import_module("swift.template.utils")
    for name, value in vars(utils).items():
        setattr(template, name, value)
    return [getattr(importlib.import_module("swift.template." + m), name) for m, name in
            (("base", "Template"), ("template_meta", "TemplateMeta"), ("template_inputs", "StdTemplateInputs"))]


class Bytes:
    """The built-in byte tokenizer of ftune: id = byte + 16."""
    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 1, 2, 0, 3
    eos_token = "\x00no such text\x00"

    def __call__(self, text, add_special_tokens=True, **_):
        return {"input_ids": ([1] if add_special_tokens else []) + [b + 16 for b in text.encode("utf-8")]}

    def encode(self, text, add_special_tokens=True):
        return self(text, add_special_tokens)["input_ids"]

    def convert_tokens_to_ids(self, text):
        return None


def bind(pieces):
    return pieces and [p if isinstance(p, str) else [p["token"]] if "token" in p else list(p["ids"]) for p in pieces]


class Original:
    def __init__(self, classes):
        self.Template, self.Meta, self.Inputs = classes

    def encode(self, t, messages, system, scale):
        meta = self.Meta(t["name"], prefix=bind(t["prefix"]) or [], prompt=bind(t["prompt"]), chat_sep=bind(t["chat_sep"]),
                         suffix=bind(t["suffix"]), system_prefix=bind(t["system_prefix"]), default_system=t["default_system"],
                         auto_add_bos=t["auto_add_bos"])
        if any("{{SYSTEM}}" in p for p in meta.prefix if isinstance(p, str)):
            meta.prefix = [p.replace("{{SYSTEM}}", "") if isinstance(p, str) else p for p in meta.prefix]
        template = self.Template(None, meta, loss_scale=scale)
        template.template_meta.init(Bytes())
        template.tokenizer = template.processor = Bytes()
        template.mode = "train"
        binary = template.loss_scale.is_binary_loss_scale
        template.is_binary_loss_scale = False                                  # ours is asked for weights too
        out = template._encode(self.Inputs(messages=[dict(m) for m in messages], system=system))
        return out["input_ids"], out["labels"], [float(x) for x in out["loss_scale"]], binary


# -- rows --------------------------------------------------------------------------------------------------------------

def draw(r, t):
    messages = []
    for _ in range(r.choice((1, 1, 2, 3)) if t["chat_sep"] is not None else 1):
        # never both empty: ftune leaves an empty round out
        answer = {"role": "assistant", "content": "".join(r.choice(WORDS) for _ in range(r.choice((0, 1, 2, 3, 5, 9)))) or "x"}
        if r.random() < 0.15:
            answer["loss"] = r.choice((True, False, None))
        if r.random() < 0.15:
            answer["loss_scale"] = r.choice((0, 0.5, 1, 2.0, 3, None))
        messages += [{"role": "user", "content": r.choice(QUESTIONS)}, answer]
    system = None
    if t["system_prefix"] is not None and r.random() < 0.5:
        system = r.choice(("Be brief.", "", "Action: none\nObservation: none", "<think>\n</think>x"))
    return messages, system


def draw_scale(r):
    names = [r.choice(NAMES) for _ in range(r.choice((0, 1, 1, 1, 2, 3)))]
    base = r.choice(BASES) if not names or r.random() < 0.5 else None
    return "+".join(([base] if base else []) + names)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--n", type=int, default=4000)
    a.add_argument("--seed", type=int, default=7)
    a = a.parse_args()
    templates = os.path.join(SHARED, "swift/templates.json")
    for path in (os.path.join(ORIGINAL, "swift"), templates):
        if not os.path.exists(path):
            print("SKIP %s is not there (pip install --no-deps --target %s ms-swift==4.6.0)" % (path, ORIGINAL))
            print("0 passed, 0 failed, 1 skipped")
            return 0
    sys.path.insert(0, ORIGINAL)
    logging.disable(logging.WARNING)
    original = Original(load_original(ORIGINAL))
    templates = json.load(open(templates))["era_2024"]["templates"]
    r = random.Random(a.seed)
    jobs = {}
    for i in range(a.n):
        name = r.choice(TEMPLATES)
        scale = BASES[i % 3] + "+" + NAMES[i // 3 % 8] if i % 4 == 0 else draw_scale(r)
        jobs.setdefault((name, scale), []).append(draw(r, templates[name]))
    weighted = 0
    for (name, scale), rows in sorted(jobs.items()):
        lines = []
        for messages, system in rows:
            row = {"messages": messages if system is None else [{"role": "system", "content": system}] + messages}
            lines.append(json.dumps(row, ensure_ascii=False))
        got = subprocess.run([FTUNE, "encode", "--tokenizer", "bytes", "--template", name, "--swift", "3", "--special", "parse",
                              "--loss-scale", scale], input="\n".join(lines) + "\n", capture_output=True, text=True)
        out = got.stdout.split("\n")[:-1]
        check(len(out) == len(rows), "%s %s" % (name, scale), "%d rows, %d lines: %s" % (len(rows), len(out), got.stderr[:300]))
        for line, text, (messages, system) in zip(lines, out, rows):
            ids, labels, weights, binary = original.encode(templates[name], messages, system, scale)
            found = json.loads(text)
            same = found.get("input_ids") == ids and found.get("labels") == labels and found.get("loss_scale") == weights
            weighted += not binary and any(w not in (0, 1) for w in weights)
            check(same, "%s %s" % (name, scale), "%s\n    %s\n    %s" % (line, weights, text[-900:]))
    check(weighted > a.n // 20, "rows with weights", str(weighted))
    print("%d passed, %d failed, 0 skipped" % tuple(counts))
    return counts[1] != 0


if __name__ == "__main__":
    sys.exit(main())
