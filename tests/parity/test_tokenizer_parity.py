#!/usr/bin/env python3
"""ftune's ids against those of the programs the vocabularies come from, on seeded random strings.

    python3 tests/parity/test_tokenizer_parity.py [N] [--full] [--family NAME ...] [--seed S]

N strings a family (20,000; --full: 1,000,000) go through `build/ftune tokenize` and through tiktoken or Hugging Face
tokenizers (SentencePiece has a script of its own). On a difference the string is shrunk to the shortest that still differs and shown.
Vocabularies are looked for in $FTUNE_SHARED (../shared); a family without its file is skipped.
Needs: tiktoken, tokenizers, unicodedata2 (Unicode 16, for NFC in front of tiktoken).
"""
import argparse
import base64
import json
import os
import random
import subprocess
import sys

SHARED = os.environ.get("FTUNE_SHARED", "../shared")
FTUNE = os.environ.get("FTUNE", "build/ftune")

C = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
P = r"[^\r\n\p{L}\p{N}]?"
CL100K = C + "|" + P + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN = CL100K.replace("{1,3}", "")


def cased(u, w, tail):
    return P + u + "*" + w + "+" + C + "?|" + P + u + "+" + w + "*" + C + "?" + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+" + tail + TAIL


U, W = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}"
O200K = cased(U + "]", W + "]", r"[\r\n/]*")
KIMI = r"[\p{Han}]+|" + cased(U + r"&&[^\p{Han}]]", W + r"&&[^\p{Han}]]", r"[\r\n]*")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def by_tiktoken(path, pattern, nfc=False):
    import tiktoken
    ranks = {}
    for line in open(path, "rb"):
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    enc = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    if nfc:
        import unicodedata2
        return lambda texts: [enc.encode_ordinary(unicodedata2.normalize("NFC", t)) for t in texts]
    return lambda texts: [enc.encode_ordinary(t) for t in texts]


def by_huggingface(path, special=False):
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(path)
    return lambda texts: [e.ids for e in tok.encode_batch(texts, add_special_tokens=special)]


def by_pair(folder, regex_of, nfc):
    """vocab.json and merges.txt, as Hugging Face reads them."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    tok = Tokenizer(models.BPE.from_file(folder + "/vocab.json", folder + "/merges.txt"))
    if nfc:
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex_of), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return lambda texts: [e.ids for e in tok.encode_batch(texts, add_special_tokens=False)]


# name: file, arguments of tokenize, how the other program is made
FAMILIES = {
    "qwen": ("qwen/qwen.tiktoken", ["--special", "text"], lambda p: by_tiktoken(p, QWEN, True)),
    "cl100k": ("cl100k_base/cl100k_base.tiktoken", ["--special", "text"], lambda p: by_tiktoken(p, CL100K)),
    "o200k": ("o200k_base/o200k_base.tiktoken", ["--special", "text"], lambda p: by_tiktoken(p, O200K)),
    "llama3": ("llama3/tokenizer.model", ["--special", "text"], lambda p: by_tiktoken(p, CL100K)),
    "kimi": ("kimi-k2/tiktoken.model", ["--special", "text"], lambda p: by_tiktoken(p, KIMI)),
    "gpt2": ("gpt2/vocab.json", ["--special", "text"], lambda p: by_pair(os.path.dirname(p), GPT2, False)),
    "qwen2-pair": ("qwen2/vocab.json", ["--special", "text"], lambda p: by_pair(os.path.dirname(p), QWEN, True)),
    "qwen3": ("qwen2/tokenizer.qwen3.json", ["--special", "parse"], by_huggingface),
    "roberta": ("roberta-base/tokenizer.json", ["--special", "parse", "--add-special"], lambda p: by_huggingface(p, True)),
    "bert": ("bert-base-uncased/tokenizer.json", ["--special", "parse", "--add-special"], lambda p: by_huggingface(p, True)),
    "t5": ("t5-small/tokenizer.json", ["--special", "parse", "--add-special"], lambda p: by_huggingface(p, True)),
    "phi-3": ("phi-3/tokenizer.json", ["--special", "parse"], by_huggingface),
}

WORDS = ("the of and to in is was for that on with as his they at be this from have or by one had not but what all were "
         "Hello World don't I'LL we've IT'S she'd O'Neil naïve café Straße ΣΑΣ İstanbul ﬁne 你好 世界 杭州是个好地方 "
         "今天天气 東京 カタカナ ひらがな 안녕하세요 สวัสดี नमस्ते привет мир مرحبا שלום int main(void) { return 0; } "
         "self.assertEqual( for(i=0;i<n;i++) http://example.com/a?b=c&d=%20 user@example.com 3.14159 1,000,000 2024-01-31 "
         "<|im_start|> <|im_end|> <|endoftext|> <|im_ <s> </s> <mask> [CLS] [SEP] [MASK] <unk> <pad> <|extra_0|> <extra_id_0> "
         "<think> </think> <tool_call>").split(" ")
RANGES = [(32, 126), (0, 31), (0x7F, 0xA0), (0xA0, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
          (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x20A0, 0x20FF),
          (0x2100, 0x214F), (0x2E80, 0x2FDF), (0x3000, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
          (0xE000, 0xE010), (0xF900, 0xFAFF), (0xFB00, 0xFB06), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0xFFF9, 0xFFFD),
          (0x10400, 0x1044F), (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF), (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF), (0x20000, 0x20100),
          (0xE0100, 0xE0110)]
SPACES = [" ", "  ", "   ", "\n", "\r\n", "\t", "\n\n", " \n", "\n ", "\u3000", "\u00a0", "\u2003", "\u0085", "\u2028", "\u200b", "\u200d", "\ufeff"]


def random_text(rng):
    out = []
    for _ in range(rng.choice((1, 2, 3, 5, 8, 13))):
        kind = rng.random()
        if kind < 0.35:
            out.append(rng.choice(WORDS))
        elif kind < 0.55:
            lo, hi = rng.choice(RANGES)
            out.append("".join(chr(rng.randint(lo, hi)) for _ in range(rng.choice((1, 2, 3, 4, 5, 6, 40)))))
        elif kind < 0.60:                                      # words no vocabulary has; runs of one script, long too
            low, high = rng.choice((("a", "z"), ("a", "z"), ("A", "z"), ("一", "龥"), ("的", "目"), ("ぁ", "ヺ"), ("а", "я"), ("가", "힣"), ("à", "ž"), ("ก", "๛")))
            out.append("".join(chr(rng.randint(ord(low), ord(high))) for _ in range(rng.choice((2, 4, 7, 11, 17, 25, 60, 300 if rng.random() < 0.05 else 9)))))
        elif kind < 0.75:
            out.append(rng.choice(SPACES))
        elif kind < 0.80:
            out.append(rng.choice("aAeo'^-=_.#/0 9\n中é") * rng.randint(1, 20))
        elif kind < 0.85:
            out.append(str(rng.randint(0, 10 ** rng.randint(1, 12))))
        elif kind < 0.90:
            out.append(rng.choice(("e\u0301", "\u1100\u1161\u11a8", "a\u0323\u0302", "👨‍👩‍👧", "🇩🇪", "👍🏽", "'ſ", "\u212b", "ǅ", "ʰ", "々", "〇", "\u3021")))
        else:
            out.append(rng.choice("!?.,;:()[]{}<>|@#$%^&*+-=/\\\"'`~_…—“”’。，！？、"))
    return "".join(out)


def ours(path, args, texts):
    data = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    run = subprocess.run([FTUNE, "tokenize", "--tokenizer", path] + args, input=data.encode(), capture_output=True)
    lines = run.stdout.split(b"\n")[:-1]
    if run.returncode or len(lines) != len(texts):
        raise SystemExit("ftune tokenize failed: " + run.stderr.decode(errors="replace")[:500])
    return [json.loads(line).get("ids") for line in lines]


def shrink(text, differs):
    """The shortest text, by leaving out pieces, that still differs. differs: texts -> list of bool."""
    size = max(len(text) // 2, 1)
    while size:
        tries = [text[:i] + text[i + size:] for i in range(0, len(text), max(size // 2, 1))]
        good = [t for t, bad in zip(tries, differs(tries)) if bad and len(t) < len(text)] if tries else []
        if good:
            text = min(good, key=len)
        else:
            size //= 2
    return text


def main():
    a = argparse.ArgumentParser()
    a.add_argument("n", nargs="?", type=int, default=20000)
    a.add_argument("--full", action="store_true")
    a.add_argument("--family", nargs="*", default=list(FAMILIES))
    a.add_argument("--seed", type=int, default=1)
    o = a.parse_args()
    passed = failed = skipped = 0
    for name in o.family:
        file, args, make = FAMILIES[name]
        path = os.path.join(SHARED, "vocab", file)
        if not os.path.exists(path):
            print("SKIP %s: no %s" % (name, path))
            skipped += 1
            continue
        theirs = make(path)
        rng = random.Random("%s %d" % (name, o.seed))
        left, wrong = 1000000 if o.full else o.n, 0
        while left > 0 and wrong < 3:
            texts = [random_text(rng) for _ in range(min(left, 10000))]
            left -= len(texts)
            for text, x, y in zip(texts, ours(path, args, texts), theirs(texts)):
                if x == y:
                    continue
                text = shrink(text, lambda ts: [u != v for u, v in zip(ours(path, args, ts), theirs(ts))])
                print("%s: %s\n    ftune %s\n    other %s" % (name, ascii(text), ours(path, args, [text])[0], theirs([text])[0]))
                wrong += 1
                if wrong == 3:
                    break
        print("%-12s %s" % (name, "%d differences or more" % wrong if wrong else "%d strings, all equal" % (1000000 if o.full else o.n)))
        sys.stdout.flush()
        passed += not wrong
        failed += bool(wrong)
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
