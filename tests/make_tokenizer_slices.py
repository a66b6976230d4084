#!/usr/bin/env python3
"""make_tokenizer_slices.py - small tokenizer files for the tests, so that a fresh clone needs no download

    build/venv/bin/python tests/make_tokenizer_slices.py      (needs sentencepiece 0.1.x, see tests/parity)

writes
    tests/data/bert_slice/tokenizer.json   the pieces of bert-base-uncased that the sentences below need, with their own
                                           ids (Apache-2.0, google-research/bert; read from $FTUNE_SHARED/vocab)
    tests/data/spm_bpe.model               SentencePiece BPE with byte fallback and user-defined pieces
    tests/data/spm_unigram.model           SentencePiece Unigram with a few normalisation rules
    tests/data/spm_suffix.model            Unigram, white space behind the words, byte fallback
    tests/golden/sentencepiece.jsonl       what SentencePiece says of TEXTS with each of the three
The models are trained on the sentences of this file.
"""
import io
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(ROOT, "build", "sentencepiece_0.1"))
import sentencepiece  # noqa: E402

SHARED = os.environ.get("FTUNE_SHARED", os.path.join(ROOT, "..", "shared"))
SENTENCES = ["杭州是个好地方", "Hello, world!", "How are you? I am fine.", "unaffordable tokenization isn't a café résumé",
             "don't", "##ing # [ ] mask", "1234567 42", "naïve Ünïcödé"]
CORPUS = """the cat sat on the mat and the dog sat on the log
a small river runs from the hills to the sea and the mill stands on its bank
she sells sea shells on the sea shore and he sells nothing at all
how are you today, I am fine, thank you, and how is your sister
in the town of Lund there is a mill, in the town of Rund there is a bridge
numbers: 1 2 3 42 100 1234 3.14 and 2.71; lists (one), (two), (three)
杭州是一个好地方 西湖在杭州 我是中国人 他是老师 今天天气很好 你好世界
слово за слово, привет мир, как дела сегодня
für größe und über müde Bären, naïve café résumé
def main(): return 0; int main(void) { return x + y; } for (i = 0; i < n; i++) sum += a[i];
aaaa bbbb cccc ---- ==== .... hahaha hahahaha""".split("\n")
TEXTS = ["", " ", "  ", "Hello world", " the cat  sat on the   mat ", "the\tcat\nsat", "杭州是个好地方", "привет, мир!", "naïve café",
         "①②③ ﬁne ＡＢＣ", "<s> </s> <unk> <sep> <user>", "<user>hi<bot>yes", "a<user", "\u2581the\u2581cat", "x" * 40, "-" * 33, "." * 37,
         "aaaaaaaaaaaaaaaaaaaaaaaaaaa", "日本語 한국어 😀👨‍👩‍👧", "\x00\x01", "e\u0301", "1234567.89", "int main(void) { return 42; }",
         "hahahahahahahahahahahahahahahahahahahahahahahahahaha", "\ufeffthe", "the\u3000cat", "the cat\u00a0", "sea shells " * 30]


def bert_slice():
    with open(os.path.join(SHARED, "vocab", "bert-base-uncased", "tokenizer.json"), encoding="utf-8") as f:
        full = json.load(f)
    import tokenizers
    tok = tokenizers.Tokenizer.from_str(json.dumps(full))
    ids = {t["id"] for t in full["added_tokens"]}
    for s in SENTENCES:
        ids.update(tok.encode(s).ids)
    full["model"]["vocab"] = {k: v for k, v in full["model"]["vocab"].items() if v in ids}
    os.makedirs(os.path.join(HERE, "data", "bert_slice"), exist_ok=True)
    with open(os.path.join(HERE, "data", "bert_slice", "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(full, f, ensure_ascii=False, indent=1)
        f.write("\n")


def train(name, **options):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS * 3), model_writer=out, num_threads=1,
                                             minloglevel=2, **options)
    path = os.path.join(HERE, "data", name + ".model")
    with open(path, "wb") as f:
        f.write(out.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=path)


def main():
    bert_slice()
    rules = os.path.join(ROOT, "build", "rules.tsv")
    with open(rules, "w") as f:
        for a, b in (("①", "1"), ("②", "2"), ("ﬁ", "fi"), ("e\u0301", "é"), ("\t", " "), ("\n", " "), ("\u3000", " "), ("Ａ", "A"), ("Ｂ", "B")):
            f.write("%s\t%s\n" % (" ".join("%X" % ord(c) for c in a), " ".join("%X" % ord(c) for c in b)))
    made = {
        "spm_bpe": train("spm_bpe", model_type="bpe", vocab_size=520, byte_fallback=True, character_coverage=0.98,
                         normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                         user_defined_symbols="<user>,<bot>", control_symbols="<sep>"),
        "spm_unigram": train("spm_unigram", model_type="unigram", vocab_size=184, normalization_rule_tsv=rules,
                             user_defined_symbols="<user>,..", control_symbols="<sep>"),
        "spm_suffix": train("spm_suffix", model_type="unigram", vocab_size=420, byte_fallback=True, character_coverage=0.98,
                            treat_whitespace_as_suffix=True, normalization_rule_name="identity", bos_id=-1, pad_id=0, unk_id=1, eos_id=2),
    }
    with open(os.path.join(HERE, "golden", "sentencepiece.jsonl"), "w", encoding="utf-8") as f:
        for name, sp in made.items():
            for text in TEXTS:
                ids = sp.encode(text)
                row = {"model": name, "text": text, "ids": ids}
                if "\u2581" not in text:       # a second U+2581 in front is kept when decoding, the original drops it
                    row["decoded"] = sp.decode(ids)
                f.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
