# Encodes {"clip": FILE, "segment_seconds": N} to an MP4 in a folder beside the clip.
set -eu
job=$(cat)
clip=$(printf %s "$job" | sh text.sh clip)
seconds=$(printf %s "$job" | sh text.sh segment_seconds)
[ -f "$clip" ] || { echo "there is no clip $clip" >&2; exit 65; }
folder="$clip.d"
mkdir -p "$folder"
# Another attempt may be at it: each writes a file of its own, and one of them stays.
ffmpeg -v error -y -i "$clip" -c:v mpeg4 -q:v 4 -c:a aac \
    -force_key_frames "expr:gte(t,n_forced*$seconds)" -f mp4 "$folder/encoded.$CARBONMESH_ATTEMPT"
mv "$folder/encoded.$CARBONMESH_ATTEMPT" "$folder/encoded.mp4"
printf '{"folder": "%s", "encoded": "%s"}' "$folder" "$folder/encoded.mp4"
