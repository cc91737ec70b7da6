#!/usr/bin/env bash
# TEST: timeout=400
# SPDX-License-Identifier: Apache-2.0
# Input that is wrong, damaged or hostile: one line that names the file, the place, the reason and the remedy, the right
# exit code (2 wrong use, 3 bad input, 4 a resource is exhausted), and nothing half-written.
. tests/lib.sh

mkdir "$scratch/corpus"
tiny_data "$scratch/corpus" 24
clip=$scratch/corpus/clips/0000001.mp4
data=$scratch/corpus/data
tiny_train_config "$data" "$scratch/unused" >"$scratch/train.yaml"
check 'a model to damage' "$TESSERA" train "$scratch/train.yaml" --train.steps=2 --out="$scratch/run"
model=$scratch/run/model
bad=$scratch/bad.yaml

# poke FILE OFFSET BYTES: overwrites in place; the bytes as printf takes them
poke() {
    printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# ---- the command line

expect_fail 2 'no command given' "$TESSERA"
expect_fail 2 '"trian" is not a command' "$TESSERA" trian
expect_fail 2 'no configuration file is given' "$TESSERA" train
expect_fail 2 'unknown option "train.stpes"; did you mean "train.steps"?' "$TESSERA" train "$scratch/train.yaml" --train.stpes=3
expect_fail 2 'unknown option "clps"; did you mean "clips"?' "$TESSERA" world --clps 3 --out "$out"
expect_fail 2 'unknown option "guidnce"; did you mean "guidance"?' "$TESSERA" generate --guidnce 2
expect_fail 2 'unknown option "bukets"; did you mean "buckets"?' "$TESSERA" ingest --bukets=64x64x17
expect_fail 2 "'partiy' is not known" "$TESSERA" check partiy
expect_fail 2 '"frob" is not a target' "$TESSERA" bench frob
expect_fail 2 'is -1; it must be 0 to' "$TESSERA" world --clips 2 --seed -1 --out "$out"
printf 'freq_dim: 3\n' >"$bad"
expect_fail 2 'head_dim and freq_dim must be even' "$TESSERA" bench train --config "$bad"
expect_fail 2 'even sides' "$TESSERA" world --clips 2 --size 33x32 --out "$out"
expect_fail 2 'is a file; give a folder' "$TESSERA" world --clips 2 --out "$clip"
expect_fail 2 'holds' "$TESSERA" world --clips 2 --out "$data"
expect_fail 3 'no-such-file: cannot open' "$TESSERA" world --clips 2 --hold-out no-such-file --out "$out"
for command in world ingest train generate score check bench; do
    check "$command --help" "$TESSERA" $command --help
    said "$command --help says how" "tessera $command"
done

# ---- YAML

# yaml CODE 'text' 'content as printf takes it': the same refusal from both commands that read one
yaml() {
    printf "$3" >"$bad"
    for command in train ingest; do
        expect_fail "$1" "$2" "$TESSERA" $command "$bad" --out="$out"
    done
}
yaml 2 "$bad:2: unknown key \"seeed\"; did you mean \"seed\"?" 'seed: 1\nseeed: 2\n'
yaml 2 "$bad:1: \"seed\" must be a whole number, and is \"many\"" 'seed: many\n'
yaml 2 "$bad:1: \"seed\" must be one plain value, and is a list" 'seed: [1, 2]\n'
yaml 2 "$bad:1: \"seed\" is -3; it must be 0 to" 'seed: -3\n'
yaml 2 "$bad:1: \"seed\" must be a whole number" 'seed: 99999999999999999999\n'
yaml 2 "$bad:3: key \"seed\" occurs twice; the first is on line 1" 'seed: 1\n\nseed: 1\n'
yaml 2 "$bad:1: anchors (&a) are refused" 'out: &a [x,x,x,x,x,x,x,x]\nseed: [*a,*a,*a,*a,*a,*a]\n'
yaml 2 "$bad:1: aliases (*a) are refused" 'seed: *a\n'
yaml 2 "$bad:2: not valid YAML" 'seed: "1\n'
yaml 2 "$bad: not UTF-8 text at byte 7" 'seed: 1\xff\n'
yaml 2 '" is missing' ''
yaml 2 "$bad:1: " "$(head -c 200000 /dev/zero | tr '\0' '[')"
yaml 2 "$bad:1: " "seed: $(head -c 200000 /dev/zero | tr '\0' '[')"
yaml 2 "$bad:1: " "$(head -c 200000 /dev/zero | tr '\0' '{')"
head -c 5000000 /dev/zero | tr '\0' '#' >"$scratch/large.yaml"
for command in train ingest; do
    expect_fail 3 'missing.yaml: cannot open: No such file' "$TESSERA" $command missing.yaml --out="$out"
    expect_fail 3 'is not a regular file' "$TESSERA" $command "$scratch" --out="$out"
    expect_fail 3 'has 5000000 bytes, more than' "$TESSERA" $command "$scratch/large.yaml" --out="$out"
done
expect_fail 2 '"out" is missing' "$TESSERA" ingest "$scratch/corpus/ingest.yaml" --out=
expect_fail 2 '"data" is missing' "$TESSERA" train "$scratch/train.yaml" --data= --out="$out"
expect_fail 2 'model.head_dim is odd' "$TESSERA" train "$scratch/train.yaml" --model.head_dim=17 --out="$out"
expect_fail 2 'every weight is 0' "$TESSERA" train "$scratch/train.yaml" --patterns.all=0 --out="$out"
expect_fail 2 'bucket "32x32x10"' "$TESSERA" ingest "$scratch/corpus/ingest.yaml" --buckets=32x32x10 --out="$out"
expect_fail 2 'ranks are asked for, 1 run' "$TESSERA" train "$scratch/train.yaml" --mesh.data=3 --out="$out"
expect_fail 2 'or a multiple of that, 1 run' "$TESSERA" train "$scratch/train.yaml" --mesh.tensor=3 --out="$out"
expect_fail 2 'a watch of 0.5 s' "$TESSERA" train "$scratch/train.yaml" --watch.timeout=0.5 --out="$out"

# ---- videos

videos=$scratch/videos
mkdir "$videos" "$videos/folder.mp4"
: >"$videos/empty.mp4"
echo 'not a video' >"$videos/text.mp4"
head -c $(($(stat -c %s "$clip") / 2)) "$clip" >"$videos/truncated.mp4"
head -c 3000 "$TESSERA" >"$videos/program.mp4"
printf '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://%s\n#EXT-X-ENDLIST\n' "$clip" >"$videos/playlist.mp4"
printf 'ffconcat version 1.0\nfile %s\n' "$clip" >"$videos/concat.mp4"
printf 'YUV4MPEG2 W16000 H16000 F8:1 C420\nFRAME\n' >"$videos/huge.y4m"
printf 'YUV4MPEG2 W60000 H60000 F8:1 C420\nFRAME\n' >"$videos/larger.y4m"
sound='\x08\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x3e\x00\x00\x00\x00\x00\x00\x00\x10'
printf "FLV\x01\x04\x00\x00\x00\x09\x00\x00\x00\x00$sound$sound$sound$sound$sound$sound" >"$videos/sound.flv"
mkfifo "$videos/pipe.mp4"
ln -s nowhere "$videos/dangling.mp4"
for name in folder.mp4 empty.mp4 text.mp4 truncated.mp4 program.mp4 playlist.mp4 concat.mp4 huge.y4m larger.y4m sound.flv \
    pipe.mp4 dangling.mp4 absent.mp4; do
    printf '{"file_name": "%s", "text": "a %s"}\n' "$name" "${name%.*}"
done >"$videos/metadata.jsonl"

ingest=("$TESSERA" ingest "$scratch/corpus/ingest.yaml" --source="$videos" --out="$out")
expect_fail 3 "$videos: nothing could be ingested: none of its 9 files gives a clip; the first reason: $videos/" "${ingest[@]}"
expect_fail 3 "$videos: nothing could be ingested" "${MPIRUN[@]}" -n 2 "${ingest[@]}"

# One good file among them: the others are named with their reasons.
cp "$clip" "$videos/good.mp4"
echo '{"file_name": "good.mp4", "text": "a good one"}' >>"$videos/metadata.jsonl"
check 'the good file is ingested' timeout 60 "${ingest[@]}"
said 'it is counted' 'from 1 of 14 files'
said 'so are the others' 'unreadable *9 files; see'
skipped() {
    check "$1 is named with its reason" grep -q "\"$1\".*$2" "$out/skipped.jsonl"
}
skipped folder.mp4 'no such file'
skipped absent.mp4 'no such file'
skipped pipe.mp4 'no such file'
skipped dangling.mp4 'no such file'
skipped empty.mp4 'the file is empty'
skipped text.mp4 'cannot be opened as a video'
skipped truncated.mp4 'of 9 frames are damaged or missing, above the limit of 10 %'
skipped program.mp4 'cannot be opened as a video'
skipped playlist.mp4 'not one of the accepted containers'
skipped concat.mp4 'not one of the accepted containers'
skipped huge.y4m 'frames of 16000x16000 are above the limit of 16777216 pixels'
skipped larger.y4m 'cannot be opened'
skipped sound.flv 'holds no video stream'
rm -rf "$out"

# ---- captions

# captions CODE 'text' NAME 'content as printf takes it', beside one good video a.mp4
captions() {
    rm -rf "$scratch/captions"
    mkdir "$scratch/captions"
    cp "$clip" "$scratch/captions/a.mp4"
    printf "$4" >"$scratch/captions/$3"
    expect_fail "$1" "$2" "$TESSERA" ingest "$scratch/corpus/ingest.yaml" --source="$scratch/captions" --out="$out"
}
captions 3 'the first: b.mp4: there is a caption for it but no such file' metadata.jsonl '{"file_name": "b.mp4", "text": "x"}\n'
captions 3 'metadata.jsonl:2: "../a.mp4" is not a path inside the folder' metadata.jsonl '\n{"file_name": "../a.mp4", "text": "x"}\n'
captions 3 'metadata.jsonl:1: "/etc/passwd" is not a path inside' metadata.jsonl '{"file_name": "/etc/passwd", "text": "x"}\n'
captions 3 'metadata.jsonl:1: "text" must be a string' metadata.jsonl '{"file_name": "a.mp4", "text": 7}\n'
captions 3 'metadata.jsonl:1: "file_name" must be a string' metadata.jsonl '{"text": "x"}\n'
captions 3 'metadata.jsonl:1: not valid JSON' metadata.jsonl '{"file_name": "a.mp4"'
captions 3 'metadata.jsonl:1: not valid JSON' metadata.jsonl '{"file_name": "a.mp4", "text": "\xff"}\n'
captions 3 'metadata.jsonl: holds a NUL byte' metadata.jsonl 'a\0b\n'
captions 3 'its list of captions is empty' metadata.jsonl ''
captions 3 'a.mp4: its caption is not UTF-8 text' list.csv 'path,text\na.mp4,\xff\n'
captions 3 'a.mp4: its caption is longer than 8 KiB' list.csv "path,text\na.mp4,$(head -c 9000 /dev/zero | tr '\0' x)\n"
captions 3 'list.csv:1: the header must name the columns path and text' list.csv 'path,caption\na.mp4,b\n'
captions 3 'list.csv:2: "../a.mp4" is not a path inside the folder' list.csv 'path,text\n../a.mp4,b\n'
captions 3 'list.csv:2: a quote is not closed' list.csv 'path,text\n"a.mp4,b\n'
captions 3 'a.mp4: its caption is not UTF-8 text' a.txt '\xff\xfe\n'
captions 3 'holds no captions' readme.md 'x'
expect_fail 3 'nowhere: cannot open the folder' "$TESSERA" ingest "$scratch/corpus/ingest.yaml" --source=nowhere --out="$out"
expect_fail 2 'holds files but no data set begun by ingest' "$TESSERA" ingest "$scratch/corpus/ingest.yaml" \
    --out="$scratch/corpus/clips"

# ---- data sets

# train_on CODE 'text' FILE command...: the command damages FILE of a copy of the data set
train_on() {
    local code=$1 text=$2 file=$scratch/data/$3
    shift 3
    rm -rf "$scratch/data"
    cp -r "$data" "$scratch/data"
    "$@" "$file" || fail "cannot damage $file"
    expect_fail "$code" "$text" "$TESSERA" train "$scratch/train.yaml" --data="$scratch/data" --out="$out"
}
shard=$(basename "$(ls "$data"/*.h5 | sed -n 2p)")
flip() { poke "$2" "$1" '\x63'; }
fill() { head -c "$(stat -c %s "$1")" "$TESSERA" >"$1.new" && mv "$1.new" "$1"; }
swap_codec() {  # a codec that is whole, but of another data set
    "$TESSERA" ingest "$scratch/corpus/ingest.yaml" --seed=99 --codec_sample=2 --out="$scratch/foreign" &&
        rm -r "$1" && cp -r "$scratch/foreign/codec" "$1"
} >"$scratch/foreign.log" 2>&1
train_on 3 "$shard: has 2000 bytes, the manifest says" "$shard" truncate -s 2000
train_on 3 "$shard: cannot open" "$shard" rm
train_on 3 "$shard: is not a readable HDF5 file" "$shard" fill
train_on 3 "$shard: is not a readable HDF5 file" "$shard" flip 8
train_on 3 "$shard: attribute version is missing" "$shard" flip 138
train_on 3 'manifest.json: cannot open' manifest.json rm
train_on 3 'manifest.json: not valid JSON' manifest.json truncate -s 100
train_on 3 'manifest.json: has version 7, this program reads version' manifest.json sed -i 's/"version": 1$/"version": 7/'
train_on 3 'must be the plain name of a file' manifest.json sed -i 's|"name": "shard-|"name": "../shard-|'
train_on 3 'clips of its shape do not fit in its' manifest.json sed -i 's/"count": 8/"count": 9223372036854775807/'
train_on 3 'has another shape than the manifest says' manifest.json sed -i 's/"count": 8/"count": 7/'
train_on 3 'was made by codec' manifest.json sed -i 's/"codec_fingerprint": "..../"codec_fingerprint": "0000/'
train_on 3 'holds no clips' manifest.json sed -i '/"shards"/,/^  \]/c "shards": [],'
train_on 3 'its config.json says' codec/config.json sed -i 's/"fingerprint": "..../"fingerprint": "0000/'
train_on 3 'its codec or tokenizer is not the one that its manifest names' codec swap_codec
train_on 3 'its codec or tokenizer is not the one that its manifest names' tokenizer/tokenizer.json sed -i 's/"moves"/"moved"/'
train_on 3 'tokenizer.json: cannot open' tokenizer/tokenizer.json rm
expect_fail 3 'nowhere/manifest.json: cannot open' "$TESSERA" train "$scratch/train.yaml" --data=nowhere --out="$out"
expect_fail 3 'no latent shape has the 1000 clips' "$TESSERA" train "$scratch/train.yaml" --train.batch=1000 --out="$out"
expect_fail 3 'no latent shape has the 1000 clips' "${MPIRUN[@]}" -n 2 "$TESSERA" train "$scratch/train.yaml" --train.batch=1000 --out="$out"
expect_fail 2 '25 clips cannot be held out of 24' "$TESSERA" train "$scratch/train.yaml" --validate.clips=25 --out="$out"
expect_fail 2 'do not divide by model.patch' "$TESSERA" train "$scratch/train.yaml" --model.patch=1x3x3 --out="$out"
expect_fail 2 'the first number must be 1' "$TESSERA" train "$scratch/train.yaml" --model.patch=3x2x2 --out="$out"
expect_fail 2 'than model.rope_max_positions=2; raise it' "$TESSERA" train "$scratch/train.yaml" --model.rope_max_positions=2 --out="$out"
expect_fail 3 'nowhere: not a model folder' "$TESSERA" train "$scratch/train.yaml" --init=nowhere --out="$out"

# ---- models

# generate_with 'text' FILE command...: the command damages FILE of a copy of the model
generate_with() {
    local text=$1 file=$scratch/model/$2
    shift 2
    rm -rf "$scratch/model"
    cp -r "$model" "$scratch/model"
    "$@" "$file" || fail "cannot damage $file"
    expect_fail 3 "$text" "$TESSERA" generate --model "$scratch/model" --prompt 'a red circle' --steps 2 --out "$out"
}
weights=transformer/diffusion_pytorch_model.safetensors
first='"blocks.0.attn1.norm_k.weight":{"dtype":"F32","shape":\[16\],"data_offsets":\[0,64\]},'
header() { poke "$2" 0 "$1"; }
not_a_number() { poke "$1" $(($(stat -c %s "$1") - 4)) '\x00\x00\xc0\x7f'; }
append() { echo >>"$1"; }
generate_with 'claims a header of 9223372036854775807 bytes' $weights header '\xff\xff\xff\xff\xff\xff\xff\x7f'
generate_with 'claims a header of' $weights header '\xff\xff\xff\x05'
generate_with 'overlapping the tensor that ends at byte' $weights sed -i 's/"data_offsets":\[64,128\]/"data_offsets":[32, 96]/'
generate_with 'leaving a hole' $weights sed -i "s/$first/$(printf '%*s' $((${#first} - 4)) '')/"
generate_with 'shape [8, 32], wanted [16, 16]' $weights sed -i '0,/\[16,16\]/s//[8, 32]/'
generate_with 'dimension 0 is not a non-negative integer' $weights sed -i '0,/"shape":\[16\]/s//"shape":[-1]/'
generate_with 'tensor "proj_out.bias": is missing' $weights sed -i 's/"proj_out.bias"/"proj_out.bios"/'
generate_with 'dtype "F99" is not supported' $weights sed -i '0,/F32/s//F99/'
generate_with 'duplicate object key' $weights sed -i 's/attn1.norm_q.weight/attn1.norm_k.weight/'
generate_with 'is NaN; these weights are damaged' $weights not_a_number
generate_with 'the file is truncated or damaged' $weights truncate -s 20000
generate_with 'has 5 bytes, a safetensors file has at least 8' $weights truncate -s 5
generate_with 'has 0 bytes, a safetensors file has at least 8' $weights truncate -s 0
generate_with 'tensors end at byte' $weights append
generate_with 'holds no .safetensors file' $weights rm
generate_with 'config.json: not valid JSON' transformer/config.json truncate -s 100
generate_with 'num_layers is 1000000, must be from 1 to' transformer/config.json sed -i 's/"num_layers": 1/"num_layers": 1000000/'
generate_with '"ffn_dim" is 9000000000; it must be' transformer/config.json sed -i 's/"ffn_dim": 32/"ffn_dim": 9000000000/'
generate_with 'the codec makes 8' transformer/config.json sed -i 's/"in_channels": 8/"in_channels": 4/'
generate_with 'the text encoder knows 5' text_encoder/config.json sed -i 's/"vocab_size": [0-9]*/"vocab_size": 5/'
generate_with 'tokenizer.json: cannot open' tokenizer/tokenizer.json rm
generate_with 'the codec known here is pca' codec/config.json sed -i 's/"kind": "pca"/"kind": "vae"/'
generate_with 'they do not belong together' codec/config.json sed -i 's/"fingerprint": "..../"fingerprint": "0000/'
generate_with 'flow_shift must be above 0' scheduler/scheduler_config.json sed -i 's/"flow_shift": [0-9.]*/"flow_shift": -1/'
expect_fail 3 'nowhere: not a model folder' "$TESSERA" generate --model nowhere --prompt a --out "$out"
expect_fail 3 'nowhere: not a model folder' "${MPIRUN[@]}" -n 2 "$TESSERA" generate --model nowhere --prompt a --out "$out"

# ---- golden files

if [ -n "${TESSERA_SHARED:-}" ]; then
    golden=$TESSERA_SHARED/parity/wan_t2v_tiny
    parity=("$TESSERA" check parity --model "$golden/transformer")
    head -c 100000 "$golden/io.safetensors" >"$scratch/cut.safetensors"
    expect_fail 3 'missing: cannot open' "${parity[@]}" --io "$golden/missing"
    expect_fail 3 'the file is truncated or damaged' "${parity[@]}" --io "$scratch/cut.safetensors"
    expect_fail 3 'not a safetensors file' "${parity[@]}" --io "$scratch/train.yaml"
    expect_fail 3 "tensor 'hidden_states' is missing" "${parity[@]}" --io "$golden/grads.safetensors"
    expect_fail 2 'whole number from 1' "${parity[@]}" --io "$golden/io.safetensors" --mesh tensor=0
fi

# ---- prompts and sizes

# prompt CODE 'text' options...
prompt() {
    expect_fail "$1" "$2" "$TESSERA" generate --model "$model" --out "$out" "${@:3}"
}
prompt 3 '--prompt: the prompt is empty' --prompt ''
prompt 3 '--prompt: the prompt is empty' --prompt $' \t '
prompt 3 'is not UTF-8 at byte' --prompt $'a \xff circle'
prompt 3 'a prompt of 100000 bytes; shorten it to 8192' --prompt "$(head -c 100000 /dev/zero | tr '\0' x)"
prompt 2 'give --prompt TEXT or --prompts FILE' --steps 2
prompt 2 'not both' --prompt a --prompts b
prompt 3 'missing.txt: cannot open' --prompts missing.txt
head -c 1048576 /dev/zero | tr '\0' x >"$scratch/prompts.txt"
prompt 3 'prompts.txt:1: a prompt of 1048576 bytes; shorten it to 8192' --prompts "$scratch/prompts.txt"
printf 'a red circle\n\n\xff\xfe\n' >"$scratch/prompts.txt"
prompt 3 'prompts.txt:3: byte 1 is not UTF-8' --prompts "$scratch/prompts.txt"
printf 'a\0b\n' >"$scratch/prompts.txt"
prompt 3 'holds zero bytes' --prompts "$scratch/prompts.txt"
printf '\n \n' >"$scratch/prompts.txt"
prompt 3 'no prompt in it' --prompts "$scratch/prompts.txt"
prompt 2 'a width in steps of 16' --prompt a --size 40x32
prompt 2 'is 0x0; it must be 16 to 8192' --prompt a --size 0x0
prompt 2 'make the video smaller or its window shorter' --prompt a --size 8192x8192
prompt 2 'make it 9 or 13' --prompt a --frames 10
prompt 2 'is -1; it must be 0 to' --prompt a --frames -1
prompt 2 'is 100000; it must be 0 to 1000' --prompt a --steps 100000
prompt 2 'must be a whole number, and is "0.5"' --prompt a --steps 0.5
prompt 2 'must be a number, and is "nan"' --prompt a --guidance nan
prompt 2 'it must be one of' --prompt a --solver rk9
prompt 3 'there is no folder' --prompt a --out "$scratch/nowhere/a.mp4"
printf 'a\nb\n' >"$scratch/prompts.txt"
prompt 2 'one file and there are 2 videos' --prompts "$scratch/prompts.txt" --out "$out.mp4"

# ---- a full disk, and a file that may not grow, in the middle of a checkpoint

# starve FOLDER RUNNER...: a run of which no second checkpoint fits
starve() {
    local folder=$1
    shift
    check 'a first checkpoint' "$TESSERA" train "$scratch/train.yaml" --train.schedule=constant --train.steps=3 --out="$folder/run"
    cp -r "$folder/run/checkpoints" "$scratch/before"
    "$@" timeout 20 "$TESSERA" train "$scratch/train.yaml" --train.schedule=constant --train.steps=6 --out="$folder/run" \
        >"$scratch/starved.log" 2>&1
    check 'a disk that is full ends with 4' test $? = 4
    check 'and one line' test "$(grep -c '^error: .*step-00000006.tmp/.*cannot write: .*; ' "$scratch/starved.log")" = 1
    check 'the checkpoint before it is untouched, and alone' diff -r "$scratch/before" "$folder/run/checkpoints"
    rm -r "$scratch/before"
}
small_files() { (ulimit -f 40; exec "$@"); }
fill_disk() {
    head -c 100000000 /dev/zero >"$scratch/small/ballast" 2>/dev/null
    truncate -s -100K "$scratch/small/ballast"
    "$@"
}
mkdir "$scratch/free" "$scratch/small"
starve "$scratch/free" small_files
check 'with room again it goes on' "$TESSERA" train "$scratch/train.yaml" --train.schedule=constant --train.steps=6 \
    --out="$scratch/free/run"
said 'from where it was' 'resumed after step 3'
if mount -t tmpfs -o size=2m none "$scratch/small" 2>/dev/null; then
    trap 'umount "$scratch/small"; rm -rf "$scratch"' EXIT
    starve "$scratch/small" fill_disk
fi
end
