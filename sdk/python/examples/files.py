"""Makes a file of random bytes, says what it hashes to, and removes it.

    carbonmesh bundle files.py
    carbonmesh enqueue example-one '{"size": 1024}' --wait

On several machines the file would have to lie where all of them see it.
"""

import hashlib
import os
import tempfile

from carbonmesh import Pipeline, Phase


class GenerateFile(Phase):
    job_type = "generate-file"

    def execute(self, instructions):
        size = instructions["size"]
        self.logger.info("making a file of %d bytes", size)
        handle, path = tempfile.mkstemp(prefix="carbonmesh-")
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(size))
        return {"path": path}


class CalculateHash(Phase):
    job_type = "calculate-hash"

    def execute(self, instructions):
        digest = hashlib.sha256()
        with open(instructions["path"], "rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
        return {"sha256": digest.hexdigest()}


class RemoveFile(Phase):
    job_type = "remove-file"

    def execute(self, instructions):
        os.unlink(instructions["path"])
        return {"removed": True}


class ExampleOne(Pipeline):
    name = "example-one"
    phases = [GenerateFile, CalculateHash, RemoveFile]
