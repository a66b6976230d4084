#!/usr/bin/env python3
"""How fast is the tokenizer? One run: ftune beside tiktoken, Hugging Face tokenizers and SentencePiece, one thread each.

    python3 tests/bench/tokenizer.py [--mb 4] [--rounds 5] [--kind NAME ...]        (make bench-tokenizer, three minutes)

"source" is real: this repository's header, read-me, tests and examples, once. The other texts are made here, from a
seed: English-like prose, Chinese, Japanese, program code, and short strings in many scripts. Words are drawn by Zipf's
law from a lexicon of invented words: few often, many once. That is harder than real text, in which most words are one
token. Ids are compared before anything is timed. "whole" is one call for the whole text, "4 KB" one call for each
document of that size. Cold: ftune remembers words between calls, so each round begins with a tokenizer just loaded (not
timed); tiktoken remembers nothing. Rounds alternate between the programs; a ratio is best time to best time, and in
brackets median to median. tokenizers is slow and gets the first half megabyte, in documents of 4 KB, just loaded too.
The second table is WordPiece and SentencePiece, the first half megabyte of each text, three rounds; SentencePiece is 0.1
(see tests/parity/test_sentencepiece_parity.py). Vocabularies come from $FTUNE_SHARED (../shared).
"""
import argparse
import ctypes
import glob
import itertools
import os
import random
import statistics
import subprocess
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "parity"))
SHARED = os.environ.get("FTUNE_SHARED", os.path.join(ROOT, "..", "shared"))

COMMON = ("the of and to in is was for that on with as his they at be this from have or by one had not but what all were when "
          "we there can an your which their said if do will each about how up out them then she many some so these would other "
          "into has more her two like him see time could no make than first been its who now people my made over did down only "
          "way find use may water long little very after words called just where most know get through back much before go").split()
HAN = ("的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起"
       "小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意"
       "建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战")
KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをんがぎぐげござじずぜぞだでどばびぶべぼ"
KATA = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワンガギグゲゴザジズゼゾダデドバビブベボーッャュョ"
SCRIPTS = {"de": "aeiounrstlhdmgbkwüöäß", "fr": "aeiounrstlpmdcéèàê", "es": "aeiounrstlcmpdñóá", "pl": "aeioyzwnrtkłąęśżć", "tr": "aeiınrlkdmtşçğü",
           "vi": "nhtcgiaôơưđếạảấ", "ru": "оеаинтсрвлкмдпуяыьгз", "uk": "оаинвіетрскулдїє", "el": "αοιετσνρκπμλυήόί", "he": "יוהלארתבשמנ", "ar": "اليمونترهبسعدك",
           "fa": "ایرندمهوتسکگ", "hi": "कनरसतमहपलदबािीेो", "bn": "করনতসমপলদবািেো", "ta": "கதபமனரலவாிுே", "th": "กนรอมสทวดลบยาิีเแ", "ko": "가나다라마바사이고지는을한인도로에",
           "ka": "აიერსნმლდბთ", "hy": "աենրիութկմլտ"}


def lexicon(rng, letters, n, lo, hi):
    return ["".join(rng.choice(letters) for _ in range(rng.randint(lo, hi))) for _ in range(n)]


SUMS = list(itertools.accumulate(1.0 / (i + 2.7) for i in range(30000)))


def zipf(rng, words, k):
    return rng.choices(words, cum_weights=SUMS[:len(words)], k=k)


def make_text(kind, size, seed=1):
    if kind == "source":
        files = [ROOT + "/ftune.h", ROOT + "/README.md"] + sorted(glob.glob(ROOT + "/tests/*.c") + glob.glob(ROOT + "/examples/*.c"))
        return "".join(open(f, encoding="utf-8").read() for f in files).encode()[:size].decode(errors="ignore")
    rng = random.Random("%s %d" % (kind, seed))
    out, n = [], 0
    syllables = [a + b for a in "b c d f g h j l m n p r s t v w st tr ch sh pr".split() for b in "a e i o u ea ou er in on al".split()]
    latin = COMMON + ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4))) for _ in range(20000)]
    names = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(3000)]
    han = [c for c in HAN] + lexicon(rng, HAN, 20000, 2, 3)
    japanese = lexicon(rng, KANA, 4000, 1, 3) + lexicon(rng, HAN, 6000, 1, 2) + lexicon(rng, KATA, 3000, 2, 5)
    scripts = {k: lexicon(rng, v, 3000, 2, 8) for k, v in SCRIPTS.items()}
    rng.shuffle(japanese)
    while n < size:
        if kind == "English":
            s = " ".join(zipf(rng, latin, rng.randint(4, 25)))
            s = s[0].upper() + s[1:] + rng.choice([". ", ". ", ", ", "? ", ".\n", ".\n\n"])
            if rng.random() < 0.1:
                s += str(rng.randint(0, 9999)) + " "
        elif kind == "Chinese":
            s = "".join(zipf(rng, han, rng.randint(3, 12))) + rng.choice("，，，。。、；！\n")
        elif kind == "Japanese":
            s = "".join(zipf(rng, japanese, rng.randint(3, 10))) + rng.choice("、、。。\n")
        elif kind == "code":
            pad = "    " * rng.randint(0, 4)
            a, b, c = zipf(rng, names, 3)
            s = pad + rng.choice(["if (%s > %s_%s) {\n", "%s->%s = %s[i++];\n", "return %s(%s, &%s);\n", "def %s(self, %s, %s=None):\n",
                                  "for (int i = 0; i < %s.%s; i++) %s += i;\n", "# %s %s %s\n", "}\n\n/* %s: %s %s */\n"]) % (a, b, c.capitalize())
        else:
            s = " ".join(zipf(rng, scripts[rng.choice(list(scripts))], rng.randint(2, 8))) + rng.choice([" ", ". ", "\n", "! "])
        out.append(s)
        n += len(s.encode())
    return "".join(out)


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 500)]


class Ftune:
    def __init__(self, lib, path, special=0):
        self.lib, self.path, self.special, self.tok, self.load = lib, path, special, ctypes.c_void_p(), 1e9
        self.fresh()

    def fresh(self):
        """Forget everything: load again."""
        err = Error()
        self.lib.ft_tokenizer_free(self.tok)
        start = time.perf_counter()
        if self.lib.ft_tokenizer_load(ctypes.byref(self.tok), self.path.encode(), None, ctypes.byref(err)):
            raise SystemExit(err.message.decode())
        self.load = min(self.load, time.perf_counter() - start)

    def encode(self, data, ids, n=ctypes.c_size_t()):
        self.lib.ft_tokenizer_encode(self.tok, data, ctypes.c_size_t(len(data)), self.special, ids, ctypes.c_size_t(len(ids)), ctypes.byref(n), None)
        return n.value


def times(rounds, fresh, *jobs):
    """Best and median time of each job; they take turns, and fresh is called before each turn."""
    taken = [[] for _ in jobs]
    for _ in range(rounds):
        for job, t in zip(jobs, taken):
            fresh()
            start = time.perf_counter()
            job()
            t.append(time.perf_counter() - start)
    return [(min(t), statistics.median(t)) for t in taken]


def tiktoken_encode(parity, pattern, nfc=False):
    """path -> text -> ids, one plain call a text. Qwen's text is normalised first, as its own tokenizer does."""
    def make(path):
        import unicodedata2
        encode = parity.tiktoken_of(path, pattern).encode_ordinary
        return (lambda text: encode(unicodedata2.normalize("NFC", text))) if nfc else encode
    return make


def huggingface_encode(path):
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(path)
    return lambda text: tok.encode(text, add_special_tokens=False)


def compare(rounds, tok, other, data, what):
    """(whole, theirs), (documents of 4 KB, theirs): each best and median. The ids of the whole are compared first."""
    ids = (ctypes.c_int32 * (len(data) + 16))()
    parts = [data[i:i + 4096].decode(errors="ignore") for i in range(0, len(data), 4096)]
    docs, text = [p.encode() for p in parts], data.decode()
    n = tok.encode(data, ids)
    if list(other(text)) != list(ids[:n]):
        raise SystemExit("%s: ids differ" % what)
    return (times(rounds, tok.fresh, lambda: tok.encode(data, ids), lambda: other(text)),
            times(rounds, tok.fresh, lambda: [tok.encode(d, ids) for d in docs], lambda: [other(p) for p in parts]))


def other_families(lib, texts, rounds=3):
    import test_sentencepiece_parity as parity                # before sentencepiece: it finds version 0.1
    import sentencepiece
    from tokenizers import Tokenizer

    def hf(path):
        tok = parity.bert(path, True) if path.endswith(".txt") else Tokenizer.from_file(path)
        return lambda text: tok.encode(text, add_special_tokens=False).ids

    def sp(path):
        return sentencepiece.SentencePieceProcessor(model_file=path).encode

    print("\ntokenizers (HF) and sentencepiece %s (SP), one thread, %d rounds, best; MB/s" % (sentencepiece.__version__, rounds))
    print("%-18s %-2s %-9s %8s %8s  %8s %8s  %-9s %s" % ("", "", "text", "ftune", "4 KB", "other", "4 KB", "whole", "4 KB"))
    ratios = {}
    for what, file, make in (("HF", "bert-base-uncased/tokenizer.json", hf), ("HF", "bert-base-chinese/vocab.txt", hf),
                             ("HF", "t5-small/tokenizer.json", hf), ("HF", "phi-3/tokenizer.json", hf),
                             ("SP", "llama2/tokenizer.model", sp), ("SP", "mistral/mistral_instruct_tokenizer_240323.model.v3", sp),
                             ("SP", "baichuan2/tokenizer.model", sp), ("SP", "chatglm3/tokenizer.model", sp),
                             ("SP", "internlm2/tokenizer.model", sp), ("SP", "xlnet/spiece.model", sp)):
        path, name = os.path.join(SHARED, "vocab", file), file.split("/")[0]
        if not os.path.exists(path) or (what == "SP" and not sentencepiece.__version__.startswith("0.1.")):
            print("SKIP %s: %s" % (name, "needs sentencepiece 0.1" if os.path.exists(path) else "no " + path))
            continue
        tok, other = Ftune(lib, path, what == "HF"), make(path)      # HF takes "[MASK]" in the text for the token
        for kind, text in texts.items():
            data = text.encode()[:500000].decode(errors="ignore").encode()
            (w, x), (d, y) = compare(rounds, tok, other, data, "%s, %s" % (name, kind))
            mb, group = len(data) / 1e6, "WordPiece / HF" if name.startswith("bert") else "tokenizer.json / HF" if what == "HF" else "SentencePiece"
            ratios.setdefault(group, []).extend([x[0] / w[0], y[0] / d[0]])
            print("%-18s %-2s %-9s %8.1f %8.1f  %8.1f %8.1f  %5.1fx    %5.1fx" % (
                name, what, kind, mb / w[0], mb / d[0], mb / x[0], mb / y[0], x[0] / w[0], y[0] / d[0]))
            sys.stdout.flush()
    for group, r in ratios.items():
        print("%-20s lowest ratio %.1fx, median %.1fx" % (group, min(r), statistics.median(r)))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--mb", type=float, default=4, help="megabytes of each kind")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--others", action="store_true", help="the second table only")
    a.add_argument("--kind", nargs="*", default=["English", "Chinese", "Japanese", "code", "scripts", "source"])
    o = a.parse_args()
    import test_tokenizer_parity as parity
    import tiktoken
    import tokenizers
    header = os.environ.get("FTUNE_H", os.path.join(ROOT, "ftune.h"))
    so = os.path.join(ROOT, "build", "bench_tokenizer.so")
    subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-w", "-DFTUNE_IMPLEMENTATION", "-x", "c", header, "-o", so, "-lm"], check=True)
    lib = ctypes.CDLL(so)
    texts = {k: make_text(k, int(o.mb * 1e6)) for k in o.kind}
    if o.others:
        return other_families(lib, texts)
    print("tiktoken %s, tokenizers %s, one thread, %d rounds, best; MB/s. source is real text, the others are made up." %
          (tiktoken.__version__, tokenizers.__version__, o.rounds))
    print("%-7s %-9s %8s %8s  %8s %8s  %6s  %-16s %-16s %s" %
          ("", "text", "ftune", "4 KB", "tiktoken", "4 KB", "HF", "/ tiktoken", "4 KB", "/ HF"))
    ratios = {"whole": [], "4 KB": [], "HF": []}
    for name, file, make, hf in (("qwen", "qwen/qwen.tiktoken", tiktoken_encode(parity, parity.QWEN, True), "qwen2/tokenizer.qwen3.json"),
                                 ("cl100k", "cl100k_base/cl100k_base.tiktoken", tiktoken_encode(parity, parity.CL100K), None),
                                 ("o200k", "o200k_base/o200k_base.tiktoken", tiktoken_encode(parity, parity.O200K), None)):
        path = os.path.join(SHARED, "vocab", file)
        if not os.path.exists(path):
            print("SKIP %s: no %s" % (name, path))
            continue
        tok, other = Ftune(lib, path), make(path)
        third = huggingface_encode(os.path.join(SHARED, "vocab", hf)) if hf else None
        for kind, text in texts.items():
            data = text.encode()
            few = [data[i:i + 4096].decode(errors="ignore") for i in range(0, len(data), 4096)][:125]
            mb, few_mb = len(data) / 1e6, sum(len(p.encode()) for p in few) / 1e6
            (whole, x), (small, y) = compare(o.rounds, tok, other, data, "%s, %s" % (name, kind))
            z = times(1, tok.fresh, lambda: [third(p) for p in few])[0] if third else None
            ratios["whole"].append(x[0] / whole[0])
            ratios["4 KB"].append(y[0] / small[0])
            if z:
                ratios["HF"].append(z[0] / few_mb * mb / small[0])
            print("%-7s %-9s %8.1f %8.1f  %8.1f %8.1f  %6s  %5.1fx (%5.1fx)  %5.1fx (%5.1fx)  %s" % (
                name, kind, mb / whole[0], mb / small[0], mb / x[0], mb / y[0], "%.1f" % (few_mb / z[0]) if z else "-", x[0] / whole[0],
                x[1] / whole[1], y[0] / small[0], y[1] / small[1], "%5.1fx" % ratios["HF"][-1] if z else ""))
            sys.stdout.flush()
        print("%-7s loaded in %.0f ms" % (name, 1e3 * tok.load))
    for what, r in ratios.items():
        if r:
            print("%-6s lowest ratio %.1fx, median %.1fx" % (what, min(r), statistics.median(r)))
    other_families(lib, texts)


if __name__ == "__main__":
    main()
