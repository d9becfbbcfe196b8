# Says how long one segment is.
set -eu
segment=$(sh text.sh segment)
seconds=$(ffprobe -v error -show_entries format=duration -of csv=p=0 "$segment")
printf '{"segment": "%s", "seconds": %s}' "$segment" "$seconds"
