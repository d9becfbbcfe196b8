# Makes a clip to work on: a test card with a tone. clip.sh FILE SECONDS
set -eu
ffmpeg -v error -y -f lavfi -i "testsrc=size=320x180:rate=10:duration=$2" \
    -f lavfi -i "sine=frequency=440:duration=$2" -c:v mpeg4 -q:v 4 -c:a pcm_s16le -shortest "$1"
