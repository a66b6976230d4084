#!/bin/sh
# test_cli.sh - the command line keeps its contract: what each command reads and writes, its exit status, its messages.
# Run from the root of the project after `make build/ftune`; FTUNE names another program to test.
ftune=${FTUNE:-build/ftune}
dir=build/tmp/cli; rm -rf "$dir"; mkdir -p "$dir" || exit 1
passed=0 failed=0 skipped=0
ok()    { passed=$((passed + 1)); }
wrong() { failed=$((failed + 1)); printf '%s\n  expected: %s\n  found:    %s\n' "$1" "$2" "$3"; }
is()    { if [ "$3" = "$2" ]; then ok; else wrong "$1" "$2" "$3"; fi; }                 # NAME EXPECTED FOUND
has()   { case "$3" in *"$2"*) ok ;; *) wrong "$1" "something with $2" "$3" ;; esac; }
run()   { out=$("$ftune" "$@" 2>"$dir/err" <"$dir/in"); rc=$?; err=$(cat "$dir/err"); }  # reads $dir/in
given() { printf "$@" >"$dir/in"; }
given ''

# ---- usage
run;                                  is "no command: status" 2 $rc;      has "no command: help" "train-tokenizer" "$err"
run --help;                           is "--help: status" 0 $rc;          has "--help" "detokenize" "$out"
run nonsense;                         is "unknown command" 2 $rc;         has "unknown command" "nonsense" "$err"
run encode --help;                    is "encode --help" 0 $rc;           has "encode --help" "--loss-scale" "$out"
run tokenize;                         is "no tokenizer" 2 $rc;            has "no tokenizer" "--tokenizer" "$err"
run tokenize --tokenizer bytes --lr 1; is "option of another command" 2 $rc; has "option of another command" "--lr" "$err"
run tokenize --tokenizer;             is "value missing" 2 $rc
run encode --tokenizer bytes --template qwen --max-length many; is "not a number" 2 $rc; has "not a number" "many" "$err"
run encode --tokenizer bytes --template qwen --truncation up;   is "not a choice" 2 $rc; has "not a choice" "delete|left|right" "$err"
run encode --tokenizer bytes --template qwenn; is "unknown template" 2 $rc; has "unknown template" "qwen" "$err"
run tokenize --tokenizer "$dir/none";  is "no such tokenizer" 1 $rc;      has "no such tokenizer" "$dir/none" "$err"
run tokenize --tokenizer bytes "$dir/none"; is "no such file" 1 $rc;      has "no such file" "$dir/none" "$err"
run export --format gguf;             is "export" 2 $rc;                  has "export" "not in this version" "$err"
run sft --model x --data x --out x --quant nf5; is "quant" 2 $rc;         has "quant" "nf4|int8|none" "$err"
run sft --model x --data x --out x --full --quant nf4; is "quant, full" 2 $rc; has "quant, full" "--freeze" "$err"
run pretrain --model x --data x --out x --quant int8;  is "quant, pretrain" 2 $rc
run score --model x --backend cuda;   [ $rc = 2 ] && has "cuda" "cuda" "$err" || { skipped=$((skipped + 1)); echo "SKIP built with CUDA"; }

# ---- tokenize, detokenize
given '{"text":"Hi \\u00e9"}\n\n{"text":""}\n{"text":"a\\u0000b"}'
run tokenize --tokenizer bytes
is "tokenize" '{"ids":[88,121,48,211,185]}
{"ids":[]}
{"ids":[113,16,114]}' "$out";         is "tokenize: status" 0 $rc
run tokenize --tokenizer bytes --add-special -;    has "tokenize: bos" '{"ids":[1,88,' "$out"
given '\357\273\277{"text":"a"}\r\n{"text":"b"}\r\n'
run tokenize --tokenizer=bytes;       is "tokenize: BOM and CRLF" '{"ids":[113]}
{"ids":[114]}' "$out"
given '[{"text":"a"},\n {"text":"b"}]'; run tokenize --tokenizer bytes; is "tokenize: an array" '{"ids":[113]}
{"ids":[114]}' "$out"
given '{"text":"a"}\n{"text":1}\n{"nothing":1}\nnot json\n{"text":"b"}\n'
run tokenize --tokenizer bytes;       is "tokenize: status of refused rows" 1 $rc
is "tokenize: refused rows" '{"ids":[113]} 3 {"ids":[114]}' \
   "$(printf '%s\n' "$out" | sed -n 1p) $(printf '%s\n' "$out" | sed -n 2,4p | grep -c '^{"error":"') $(printf '%s\n' "$out" | sed -n '5,$p')"
is "tokenize: one line per refused row" 3 "$(grep -c '^stdin:[234]: .*expected.*found' "$dir/err")"
awk 'BEGIN { printf "{\"text\":\""; for (i = 0; i < 9000; i++) printf "the word%d, 中文%d。 ", i, i * 7; print "\"}" }' >"$dir/long.jsonl"
run tokenize --tokenizer tests/data/qwen_slice.tiktoken --threads 1 "$dir/long.jsonl"; one=$out; is "tokenize --threads" 0 $rc
run tokenize --tokenizer tests/data/qwen_slice.tiktoken --threads 3 "$dir/long.jsonl"; is "tokenize: any thread count" "$one" "$out"
given '{"ids":[88,121,0,1,48,211,185]}\n{"ids":[88,211]}\n{"ids":[]}'
run detokenize --tokenizer bytes --skip-special
is "detokenize" '{"text":"Hi é"}
{"text":"H�"}
{"text":""}' "$out";                  is "detokenize: status" 0 $rc
given '{"ids":[1.5]}\n{"ids":["a"]}\n{"ids":5}\n'; run detokenize --tokenizer bytes; is "detokenize: not integers" 1 $rc
is "detokenize: three errors" 3 "$(printf '%s\n' "$out" | grep -c '^{"error":"')"
is "detokenize: three lines" 3 "$(grep -c '^stdin:[123]: ' "$dir/err")"
given '{"text":"杭州是个好地方 \\"\\\\\\n\\t\\u2028 <|im_end|>"}'
"$ftune" tokenize --tokenizer bytes <"$dir/in" | "$ftune" detokenize --tokenizer bytes >"$dir/back"
is "there and back" '{"text":"杭州是个好地方 \"\\\n\u0009\u2028 <|im_end|>"}' "$(cat "$dir/back")"

# ---- encode
given '{"query":"Hi","response":"Yo"}\n'
run encode --tokenizer bytes --template default-generation
is "encode" '{"input_ids":[1,88,121,105,127,2],"labels":[-100,-100,-100,105,127,2]}' "$out"
run encode --tokenizer bytes --template default-generation --max-length 6; has "encode: just fits" '"input_ids"' "$out"
run encode --tokenizer bytes --template default-generation --max-length 5
is "encode: dropped" '{"dropped":"too_long","n":6}' "$out";  is "encode: dropped: status" 0 $rc
run encode --tokenizer bytes --template default-generation --max-length 4 --truncation left
is "encode: left" '{"input_ids":[121,105,127,2],"labels":[-100,105,127,2]}' "$out"
run encode --tokenizer bytes --template default-generation --max-length 4 --truncation right
is "encode: right" '{"input_ids":[1,88,121,105],"labels":[-100,-100,-100,105]}' "$out"
run encode --tokenizer bytes --template default-generation --loss-scale default
has "encode: loss_scale" '"loss_scale":[0,0,0,1,1,1]' "$out"
run encode --tokenizer bytes --template default-generation --loss-scale reakt; is "encode: unknown loss scale" 2 $rc
has "encode: unknown loss scale" "hermes" "$err"
given '{"query":"Q","response":"Action: a\\nObservation: b"}\n'
run encode --tokenizer bytes --template default-generation --loss-scale react
has "encode: react" '"loss_scale":[0,0,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,0,0,1]' "$out"
given '{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"R","loss_scale":0.5}]}\n'
run encode --tokenizer bytes --template default-generation; has "encode: a weight of its own" '"loss_scale":[0,0,0.5,1]' "$out"
given '{"messages":[{"role":"user","content":"Hi"}]}\n'
run encode --tokenizer bytes --template default-generation
is "encode: inference form" '{"input_ids":[1,88,121],"labels":null}' "$out"
given '{"text":"Hi"}\n'; run encode --tokenizer bytes --no-chat-template
is "encode: plain text" '{"input_ids":[1,88,121,2],"labels":[-100,88,121,2]}' "$out"
given '{"query":"Hi","response":"Yo"}\n{"query":3}\n[]\n{"query":"Hi","response":"Yo"}\n'
run encode --tokenizer bytes --template qwen; is "encode: refused: status" 1 $rc
is "encode: refused: a line each on both sides" "4 2 2" \
   "$(printf '%s\n' "$out" | grep -c .) $(printf '%s\n' "$out" | grep -c '^{"error":"') $(grep -c '^stdin:[23]: ' "$dir/err")"
given '{"query":"Hi","response":"Yo","history":[["a","b"]]}\n'
run encode --tokenizer bytes --template qwen --swift 2; two=$out
run encode --tokenizer bytes --template qwen --swift 3
[ "$two" != "$out" ] && ok || wrong "encode: --swift 2 and 3 differ in the middle of a conversation" "different labels" "$out"

# ---- the course article's own outputs, with a slice of Qwen's vocabulary
qwen="--tokenizer tests/data/qwen_slice.tiktoken"
given '{"text":"杭州是个好地方"}\n';  run tokenize $qwen;  is "article: ids" '{"ids":[104130,104104,52801,100371]}' "$out"
given '{"text":"杭州是个好地方"}\n';  run tokenize --tokenizer tests/data/bert_slice --add-special
is "article: BERT ids" '{"ids":[101,100,1836,100,100,100,1802,1863,102]}' "$out"
given '{"query":"How are you?","response":"I am fine"}\n'
ids=151644,8948,198,2610,525,264,10950,17847,13,151645,198,151644,872,198,4340,525,498,30,151645,198,151644,77091,198,40,1079,6915,151645
mask=-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100,-100
for swift in 2 3; do
    run encode $qwen --template qwen --swift $swift
    is "article: labels (--swift $swift)" "{\"input_ids\":[$ids],\"labels\":[$mask,40,1079,6915,151645]}" "$out"
done

# ---- show, templates
given '{"query":"<b>&","response":"Yo"}\n'
run show --tokenizer bytes --template qwen --color always; has "show: colour" "$(printf '\033[32m')" "$out"; has "show" "suffix" "$out"
run show --tokenizer bytes --template qwen --color never
case "$out" in *"$(printf '\033')"*) wrong "show: no colour" "no escape" "$out" ;; *) ok ;; esac
run show --tokenizer bytes --template qwen --html; has "show: page" "<!doctype html>" "$out"; has "show: escaped" "&lt;" "$out"
run templates; is "templates: status" 0 $rc
[ "$(printf '%s\n' "$out" | grep -c .)" -gt 42 ] && ok || wrong "templates" "42 and a headline" "$(printf '%s\n' "$out" | grep -c .)"
run templates qwen; has "templates qwen" '"<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"' "$out"
run templates nonsense; is "templates nonsense" 2 $rc

# ---- train-tokenizer
i=0; while [ $i -lt 200 ]; do echo "the cat sat on the mat, the rat sat on the cat $i"; i=$((i + 1)); done >"$dir/text.txt"
run train-tokenizer --vocab-size 300 --out "$dir/tok" "$dir/text.txt"; is "train-tokenizer" 0 $rc
given '{"text":"the cat<|im_end|>"}\n'
run tokenize --tokenizer "$dir/tok" --special parse; parsed=$out
printf '%s' "$parsed" | "$ftune" detokenize --tokenizer "$dir/tok" >"$dir/back"
is "train-tokenizer: there and back" '{"text":"the cat<|im_end|>"}' "$(cat "$dir/back")"
printf 'good \377 bad\n' > "$dir/bad.txt"
run train-tokenizer --vocab-size 300 --out "$dir/tok" "$dir/text.txt" "$dir/bad.txt"; is "train-tokenizer: bad UTF-8" 1 $rc
has "train-tokenizer: which file" "bad.txt: byte 5: expected UTF-8, found 0xFF" "$err"
run tokenize --tokenizer "$dir/tok"; [ "$parsed" != "$out" ] && ok || wrong "special as text" "other ids" "$out"

# ---- init, plan, pretrain, sft, score, grads, generate, chat, merge
cat >"$dir/config.json" <<'END'
{"model_type":"qwen2","architectures":["Qwen2ForCausalLM"],"vocab_size":272,"hidden_size":32,"intermediate_size":64,
"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":128,"rms_norm_eps":1e-6,
"rope_theta":10000.0,"tie_word_embeddings":true,"hidden_act":"silu","torch_dtype":"float32"}
END
given ''
run plan --config "$dir/config.json" --json;  is "plan" 0 $rc;  has "plan" '"peak":' "$out"
run plan --config "$dir/config.json" --full;  has "plan: table" "moments" "$out"
run init --config "$dir/config.json" --seed 1 --out "$dir/model"; is "init" 0 $rc
run init --config "$dir/config.json" --seed 1 --out "$dir/again"
cmp -s "$dir/model/model.safetensors" "$dir/again/model.safetensors" && ok || wrong "init: same seed" "same file" "another"
printf '{"query":"Hi","response":"Hello you"}\n{"query":"Who","response":"Me"}\n' >"$dir/data.jsonl"
run sft --full --model "$dir/model" --tokenizer bytes --template default-generation --data "$dir/data.jsonl" --out "$dir/full" \
    --steps 80 --batch 2 --lr 0.01 --threads 1;  is "sft --full" 0 $rc;  has "sft: first row" "[[" "$err"; has "sft: progress" "loss" "$err"
for f in config.json model.safetensors ftune.json log.jsonl loss.svg; do [ -s "$dir/full/$f" ] && ok || wrong "sft --full" "$f" "none"; done
run generate --model "$dir/full" --prompt Hi;      is "generate" "Hello you" "$out"
given 'Hi\n{"query":"Who","response":"?"}\n'
run generate --model "$dir/full" --json;           is "generate: rows" '{"text":"Hello you"}
{"text":"Me"}' "$out"
given '{"query":3}\nHi\n'; run generate --model "$dir/full" --json; is "generate: a refused row" 1 $rc
is "generate: still a line each" '2 {"text":"Hello you"}' "$(printf '%s\n' "$out" | grep -c .) $(printf '%s\n' "$out" | sed -n 2p)"
given 'Who\nHi\n'; run chat --model "$dir/full";   is "chat" 'Me
Hello you' "$out"
# telechat ends an answer with <_end>: six tokens here, and none of them is heard
given ''
run sft --full --model "$dir/model" --tokenizer bytes --template telechat --data "$dir/data.jsonl" --out "$dir/text" \
    --steps 80 --batch 2 --lr 0.01 --threads 1;    is "sft: an end mark of text" 0 $rc
run generate --model "$dir/text" --prompt Hi;      is "generate: an end mark of text" "Hello you" "$out"
run generate --model "$dir/text" --prompt Hi --json; is "generate: an end mark of text, JSON" '{"text":"Hello you"}' "$out"
printf '{"query":"Hi","response":"Bye"}\n{"query":"Who","response":"You"}\nbroken\n' >"$dir/more.jsonl"
given ''
run sft --model "$dir/full" --data "$dir/more.jsonl" --eval "$dir/data.jsonl" --out "$dir/lora" --steps 120 --batch 2 --lr 0.01 \
    --target-modules all-linear --save-every 60 --threads 2
is "sft: a refused row" 1 $rc;  is "sft: its line" 1 "$(grep -c "^$dir/more.jsonl:3: " "$dir/err")"
for f in adapter_config.json adapter_model.safetensors ftune.json log.jsonl loss.svg; do
    [ -s "$dir/lora/$f" ] && ok || wrong "sft" "$f" "none"
done
run generate --model "$dir/full" --adapter "$dir/lora" --prompt Hi;               is "generate: adapter" "Bye" "$out"
run generate --model "$dir/full" --adapter "$dir/lora/checkpoint-120" --prompt Hi; is "generate: checkpoint" "Bye" "$out"
run merge --model "$dir/full" --adapter "$dir/lora" --out "$dir/merged";          is "merge" 0 $rc
run generate --model "$dir/merged" --prompt Hi;                                   is "generate: merged" "Bye" "$out"
head -n 2 "$dir/more.jsonl" >"$dir/good.jsonl"
lora="--target-modules all-linear --batch 1 --lr 0.03 --steps 20 --save-every 10 --threads 1"
run sft --model "$dir/full" --data "$dir/good.jsonl" --out "$dir/a" $lora;        is "sft in one go" 0 $rc
mkdir -p "$dir/b"; cp -r "$dir/a/checkpoint-10" "$dir/b/"
run sft --model "$dir/full" --data "$dir/good.jsonl" --out "$dir/b" $lora --resume; is "sft --resume" 0 $rc
cmp -s "$dir/a/adapter_model.safetensors" "$dir/b/adapter_model.safetensors" && ok || wrong "resume" "the same adapter" "another"
run pretrain --model "$dir/model" --tokenizer bytes --data "$dir/text.txt" --out "$dir/pre" --steps 3 --threads 2; is "pretrain" 0 $rc
[ -s "$dir/pre/model.safetensors" ] && ok || wrong "pretrain" "model.safetensors" "none"

"$ftune" encode --tokenizer bytes --template default-generation "$dir/good.jsonl" >"$dir/in"
run score --model "$dir/full" --threads 1; one=$out;  is "score" 0 $rc
has "score" '{"loss":' "$out";  has "score: targets" '"n":4,' "$out"
run score --model "$dir/full" --threads 2;            is "score: any thread count" "$one" "$out"
run grads --model "$dir/full" --adapter "$dir/lora" --out "$dir/g1.safetensors" --threads 1;  is "grads" 0 $rc
run grads --model "$dir/full" --adapter "$dir/lora" --out "$dir/g2.safetensors" --threads 2
cmp -s "$dir/g1.safetensors" "$dir/g2.safetensors" && ok || wrong "grads: any thread count" "the same file" "another"
given '{"input_ids":[5,6],"labels":[-100,-100]}\n{"input_ids":[5,999],"labels":[5,999]}\n{"input_ids":[5],"labels":[]}\n{"input_ids":[20,21],"labels":[20,21]}\n'
run score --model "$dir/full";  is "score: refused rows" 1 $rc;  is "score: the good row" 1 "$(printf '%s\n' "$out" | sed -n 4p | grep -c '"n":1,')"
is "score: the others" 3 "$(printf '%s\n' "$out" | grep -c '^{"error":"')"
is "score: a line each" 3 "$(grep -c '^stdin:[123]: ' "$dir/err")"
run score --model "$dir/none";  is "score: no model" 1 $rc;      has "score: no model" "$dir/none" "$err"

# ---- fewer bits, fewer trained weights
"$ftune" encode --tokenizer bytes --template default-generation "$dir/good.jsonl" >"$dir/rows"
bytes() { printf '%s' "$1" | sed 's/.*"weights":\([0-9]*\),.*/\1/'; }
run plan --model "$dir/full" --json; all=$(bytes "$out")
for how in "--dtype bf16" "--quant int8" "--quant nf4" "--quant nf4 --dtype bf16"; do
    run plan --model "$dir/full" --json $how
    [ "$(bytes "$out")" -lt "$all" ] && ok || wrong "plan $how" "fewer bytes than $all" "$(bytes "$out")"
    has "plan $how: nothing twice" '"packed":0,' "$out"
    run score --model "$dir/full" $how --threads 1 "$dir/rows"; is "score $how" 0 $rc;  has "score $how" '"n":4,' "$out"
    [ "$out" != "$one" ] && ok || wrong "score $how" "not what f32 gives" "$out"
    narrow=$out;  run score --model "$dir/full" $how --threads 2 "$dir/rows";  is "score $how: any thread count" "$narrow" "$out"
    given ''
    run sft --model "$dir/full" --data "$dir/good.jsonl" --out "$dir/narrow" --steps 120 --batch 2 --lr 0.01 $how;  is "sft $how" 0 $rc
    run generate --model "$dir/full" --adapter "$dir/narrow" $how --prompt Hi;  is "generate $how" "Bye" "$out"
    run merge --model "$dir/full" --adapter "$dir/narrow" --out "$dir/merged" $(echo "$how" | sed 's/--dtype bf16//');  is "merge $how" 0 $rc
    run generate --model "$dir/merged" --prompt Hi;  is "generate: merged $how" "Bye" "$out"
done
run grads --model "$dir/full" --adapter "$dir/lora" --quant nf4 --out "$dir/g3.safetensors" "$dir/rows";  is "grads --quant" 0 $rc
cmp -s "$dir/g1.safetensors" "$dir/g3.safetensors" && wrong "grads --quant" "other gradients" "the same" || ok
freeze="--model $dir/full --data $dir/good.jsonl --out $dir/part --steps 60 --batch 2 --lr 0.01"
run sft $freeze --freeze model.layers.0.,model.embed_tokens;  is "sft --freeze" 0 $rc
has "sft --freeze: how many" "9376 of 27424 parameters are trained" "$err"
[ -s "$dir/part/model.safetensors" ] && ok || wrong "sft --freeze" "model.safetensors" "none"
run generate --model "$dir/part" --prompt Hi;                 is "generate: part" "Bye" "$out"
run sft $freeze --freeze 0.5 --quant nf4 --dtype bf16;        is "sft --freeze 0.5 --quant nf4" 0 $rc
run grads --model "$dir/full" --freeze 0.5 --out "$dir/g4.safetensors" "$dir/rows";  is "grads --freeze" 0 $rc
run sft $freeze --freeze model.layer.0;  is "sft --freeze: matches nothing" 1 $rc;  has "sft --freeze" 'begins with "model.layer.0"' "$err"
run plan --model "$dir/full" --freeze 0.5 --json;  is "plan --freeze" 0 $rc
run plan --model "$dir/full" --freeze lm_head;     is "plan --freeze: tied" 1 $rc;  has "plan --freeze" "tied" "$err"

# ---- the programs of README.md and of the front page of ftune.h, as a reader would type them
mkdir -p "$dir/readme/chats"; here=$(pwd)
awk '/^```c/{p=1;next} /^```/{p=0} p' README.md >"$dir/readme/program.c"
awk '/^ \*     #define FTUNE_IMPLEMENTATION/{p=1} /^ \*     cc /{p=0} p{sub(/^ \* ? ? ? ? ?/,""); print}' ftune.h >"$dir/readme/front.c"
printf '{"vocab_size":700,"hidden_size":16,"intermediate_size":32,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"model_type":"qwen2"}' >"$dir/config.json"
run train-tokenizer --vocab-size 600 --out "$dir/readme/Qwen2.5-0.5B" examples/data/text_en.txt;  is "README: tokenizer" 0 $rc
run init --config "$dir/config.json" --seed 1 --out "$dir/readme/Qwen2.5-0.5B";                   is "README: model" 0 $rc
head -n 4 examples/data/chat_train.jsonl >"$dir/readme/chats.jsonl"
ln -s Qwen2.5-0.5B "$dir/readme/model-directory"
for p in program front; do
    (cd "$dir/readme" && ${CC:-cc} -std=c99 -O1 -Wall -Wextra -DFTUNE_IMPLEMENTED -I"$here" $p.c "$here/build/ftune.o" ${OPENMP--fopenmp} -o $p -lm) 2>"$dir/err" && [ ! -s "$dir/err" ] \
        && ok || wrong "README: $p.c" "compiles without a word" "$(cat "$dir/err")"
    (cd "$dir/readme" && ./$p) >"$dir/out" 2>&1 && ok || wrong "README: $p" "status 0" "$(cat "$dir/out")"
done
[ -s "$dir/readme/adapter/adapter_model.safetensors" ] && ok || wrong "README: program" "an adapter" "none"
is "front page: ids that are labels, and -100" "1 1" "$(awk '$1==$2{a=1} $2==-100{b=1} END{print a, b}' "$dir/out")"
[ "$(grep -c . "$dir/readme/program.c")" -le 15 ] && ok || wrong "README: program" "15 lines" "more"

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
