#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What is held is the source to the last bit, whatever is done beside it; remixes go as far from it as they are told.
. tests/shows/lib.sh

clips 600 21
v=$scratch/v.mp4 s=$scratch/s
cp "$(clip 21 0)" "$v"
prompt=${caption[0]}
green=${prompt/$(colour_of "$prompt")/$(other_colour "$prompt" 0)}

# held 'what' RESULT FRAME COUNT VIDEO PIXEL PIXELS: COUNT latent frames of the result from FRAME on are, bit for bit, what
# the codec makes of these pixel frames of the video (1 + 4k: as a clip; 4k: as groups)
held() {
    "$TOOLS" encode "$MODEL/codec" "$5" "$6" "$7" "$scratch/source.safetensors"
    wanted "$1: numbers of held latents that differ from the codec's" \
        "$(compare "$2" "$3" "$scratch/source.safetensors" 0 "$4" | cut -d' ' -f3)" = 0
}

title 'Held frames, in latents'
tessera remix "$v" --prompt "$green" --strength 0 --out "$s.mp4" --save-latents "$s.0.safetensors"
held 'remix of strength 0' "$s.0.safetensors" 0 5 "$v" 0 17
tessera extend "$v" --before 8f --after 8f --out "$s.mp4" --save-latents "$s.safetensors"
held 'extend' "$s.safetensors" 3 4 "$v" 0 16
tessera recut "$v" --keep 8f-16f --keep 0f-8f --fill-gaps 4f --extend-after 4f --out "$s.mp4" --save-latents "$s.safetensors"
held 'recut, second range put first' "$s.safetensors" 0 2 "$v" 8 5
held 'recut, first range put second' "$s.safetensors" 4 2 "$v" 0 8
tessera loop "$v" --seam 8f --prompt "$prompt" --out "$s.mp4" --save-latents "$s.safetensors"
held 'loop' "$s.safetensors" 0 4 "$v" 0 16
tessera blend "$v" "$(clip 21 1)" --out "$s.mp4" --save-latents "$s.safetensors"
held 'blend, first frame' "$s.safetensors" 0 1 "$v" 0 1
printf 'duration: 4s\ncards:\n  - {at: 0s, text: %s, video: %s}\n' "$prompt" "$v" >"$scratch/cards.yaml"
tessera storyboard "$scratch/cards.yaml" --out "$s.mp4" --save-latents "$s.safetensors"
held 'storyboard with a video' "$s.safetensors" 0 5 "$v" 0 17

title 'Masks'
tessera remix "$v" --prompt "$green" --strength 1 --box 16,16,32,32 --out "$s.mp4" --save-latents "$s.safetensors"
wanted 'numbers outside the box that differ from the source' \
    "$(compare "$s.safetensors" 0 "$s.0.safetensors" 0 0 2,2,4,4 | cut -d' ' -f3)" = 0
wanted 'RMS change of latents inside it and out' \
    "$(compare "$s.safetensors" 0 "$s.0.safetensors" 0 0 | cut -d' ' -f2)" '>=' 0.01

title 'Strength'
# distances WHAT I: RMS distance of clip I's remixes from the source at rising strengths, to its own prompt or to another
# colour
distances() {
    local line='' strength prompt=${caption[$2]}
    [ "$1" = own ] || prompt=${prompt/$(colour_of "$prompt")/$(other_colour "$prompt" "$2")}
    tessera remix "$(clip 21 "$2")" --strength 0 --out "$scratch/d$2.mp4" --save-latents "$scratch/d$2.0.safetensors"
    for strength in 0.2 0.4 0.6 0.8 1; do
        tessera remix "$(clip 21 "$2")" --prompt "$prompt" --strength $strength --out "$scratch/d$2.mp4" \
            --save-latents "$scratch/d$2.safetensors"
        line+="$(compare "$scratch/d$2.safetensors" 0 "$scratch/d$2.0.safetensors" 0 0 | cut -d' ' -f2) "
    done
    echo "$line"
}
for what in own other; do
    each "${CASES:-24}" distances $what >"$scratch/distances"
    means=$(for k in 1 2 3 4 5; do mean "\$$k" <"$scratch/distances"; printf ' '; done)
    measured "mean distance at 0.2, 0.4, 0.6, 0.8, 1; $what prompt" "$means"
    growth=$(awk '{ m = $2 - $1; for (k = 3; k <= 5; k++) if ($k - $(k - 1) < m) m = $k - $(k - 1); print m }' <<<"$means")
    share=$(share '$1 < $2 && $2 < $3 && $3 < $4 && $4 < $5' <"$scratch/distances")
    if [ $what = own ] || [ -z "${CASES-}" ]; then  # a mean of few clips whose colour leaps says nothing
        wanted 'least growth of the mean from one strength to the next' "$growth" '>=' 0.0001
    fi
    if [ $what = own ]; then
        wanted 'clips whose own distance grows with every strength' "$share" '>=' 100 ' %'
    else  # the colour leaps at a strength of its own, and the distance with it
        measured 'clips whose own distance grows with every strength' "$share %"
    fi
done

title 'Remix of colour, held-out combinations'
# recolour I: a clip of another colour is remixed to the I-th of the held-out prompts that are used
recolour() {
    local target k own out=$scratch/recolour$1.mp4
    target=$(sed -n "$((2 * $1 + 1))p" configs/shapes-held-out-prompts.txt)
    own=$(colour_of "$target")
    for ((k = 0; k < 600; k++)); do  # of the same shape, direction and background
        [ "${caption[k]#a * }" = "${target#a * }" ] && [ "$(colour_of "${caption[k]}")" != "$own" ] && break
    done
    tessera remix "$(clip 21 $k)" --prompt "$target" --strength "${STRENGTH:-0.8}" --seed "$1" --out "$out" &&
        score "$out" --prompt "$target" --print prompt.colour,prompt.direction,prompt.shape
}
each "${CASES:-48}" recolour >"$scratch/recolour"
wanted 'end in the new colour with the direction kept' \
    "$(share '$1 == "yes" && $2 == "yes"' <"$scratch/recolour")" '>=' 85 ' %'
measured 'and with the shape kept' "$(share '$1 == "yes" && $2 == "yes" && $3 == "yes"' <"$scratch/recolour") %"

title 'Ranks'
same_on_ranks 'remix' remix "$v" --prompt "$green" --strength 0.8
same_on_ranks 'remix with a box' remix "$v" --prompt "$green" --strength 0.8 --box 16,16,32,32
end
