"""Writes a playlist of all segments."""

import json
import math
import os
import sys

job = json.load(sys.stdin)
segments = sorted(job["measure"], key=lambda one: one["segment"])
lines = ["#EXTM3U", "#EXT-X-VERSION:6"]
lines.append("#EXT-X-TARGETDURATION:%d" % math.ceil(max(one["seconds"] for one in segments)))
for one in segments:
    lines.append("#EXTINF:%.3f," % one["seconds"])
    lines.append(os.path.basename(one["segment"]))
lines.append("#EXT-X-ENDLIST")
path = os.path.join(job["folder"], "clip.m3u8")
with open(path, "w") as playlist:
    playlist.write("\n".join(lines) + "\n")
total = sum(one["seconds"] for one in segments)
print(json.dumps({"playlist": path, "segments": len(segments), "seconds": round(total, 3)}))
