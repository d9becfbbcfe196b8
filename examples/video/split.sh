# Splits the encoded clip; prints one item for each segment.
set -eu
job=$(cat)
folder=$(printf %s "$job" | sh text.sh folder)
encoded=$(printf %s "$job" | sh text.sh encoded)
seconds=$(printf %s "$job" | sh text.sh segment_seconds)
ffmpeg -v error -y -i "$encoded" -c copy -f segment -segment_time "$seconds" \
    -reset_timestamps 1 "$folder/segment-%03d.mp4"
for segment in "$folder"/segment-*.mp4; do
    printf '{"segment": "%s"}\n' "$segment"
done
