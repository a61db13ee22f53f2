"""The Hub of server.py with a minimal Xet store (version 1 of the protocol), for uploads with the client's defaults.

Needs pyarrow (LZ4 frames) and numpy, which `datasets` depends on anyway.
"""

import hashlib
import json
import re
import struct
import time

import numpy as np
import pyarrow as pa

from . import server
from .store import HttpError


def hexhash(b):  # Xet prints a 32-byte hash as four little-endian u64
    return b"".join(b[i : i + 8][::-1] for i in (0, 8, 16, 24)).hex()


def chunks(xorb):
    """Of every chunk of a xorb: offset of its header, stored length with header, raw length, scheme, payload slice."""
    o = 0
    while o < len(xorb) and xorb[o] == 0:  # version byte 0; a trailing "XETBLOB" footer, if any, ends the walk
        comp, scheme, raw = (
            int.from_bytes(xorb[o + 1 : o + 4], "little"),
            xorb[o + 4],
            int.from_bytes(xorb[o + 5 : o + 8], "little"),
        )
        yield o, 8 + comp, raw, scheme, (o + 8, o + 8 + comp)
        o += 8 + comp


def unpack(data, scheme, raw):
    if scheme == 0:
        return data
    out = pa.decompress(data, decompressed_size=raw, codec="lz4", asbytes=True)  # LZ4 frame
    if scheme == 2:  # byte-grouped by 4 before compression
        n, a, res, o = raw, np.frombuffer(out, np.uint8), np.empty(raw, np.uint8), 0
        for g in range(4):
            k = (n - g + 3) // 4
            res[g::4] = a[o : o + k]
            o += k
        out = res.tobytes()
    return out


class XetHandler(server.Handler):
    def xorb_path(self, h):
        if not re.fullmatch("[0-9a-f]{64}", h):
            raise HttpError(400, "bad hash")
        return self.hub.root / "xet" / h

    def authenticate(self, parts):
        if parts[0] in ("v1", "v2"):  # CAS: short-lived xet token instead of the Hub token
            tok = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            scope = next((s for s in ("write", "read") if tok == self.hub.sign("xet-" + s)), None)
            if scope is None or (self.command == "POST" and scope != "write" and "telemetry" not in self.path):
                raise HttpError(401, "invalid xet token")
            self.user, self.orgs = None, set()
        elif parts[0] != "_xorb":
            super().authenticate(parts)

    def route(self, m, p):
        if p[0] == "_xorb":  # what the presigned URLs of a reconstruction point to
            if self.q.get("sig") != self.hub.sign("xorb" + p[1]):
                raise HttpError(403, "bad signature")
            return self.send_file(self.xorb_path(p[1]), {})
        if p[:3] == ["v1", "xorbs", "default"] and m == "POST":
            (self.hub.root / "xet").mkdir(exist_ok=True)
            f, data = self.xorb_path(p[3]), b"".join(self.body())
            new = not f.exists()
            f.write_bytes(data)
            return self.send(200, {"was_inserted": new})
        if p[:2] == ["v1", "shards"] and m == "POST":
            self.shard(b"".join(self.body()))
            return self.send(200, {"result": 1})
        if p[:2] == ["v1", "reconstructions"] and len(p) == 3:
            return self.reconstruction(p[2])
        if p[0] in ("v1", "v2"):
            if m == "POST":
                b"".join(self.body())
            raise HttpError(
                404, "Not found"
            )  # v1/chunks (global dedup), v1/xorb-grants, v2/*, telemetry: the client falls back
        if p[0] == "api" and len(p) >= 5 and p[4] in ("xet-read-token", "xet-write-token"):
            # users without write access get a write token only with create_pr (or for a PR ref)
            rev = p[5] if len(p) > 5 else "main"
            pr = bool(self.q.get("create_pr")) or rev.startswith("refs/pr/")
            self.repo(p[1][:-1], f"{p[2]}/{p[3]}", write=p[4] == "xet-write-token" and not pr)
            if p[4] == "xet-write-token":
                self.need_user()
            tok, exp = self.hub.sign("xet-" + p[4].split("-")[1]), int(time.time()) + 3600
            h = {"X-Xet-Cas-Url": self.hub.cdn, "X-Xet-Access-Token": tok, "X-Xet-Token-Expiration": str(exp)}
            return self.send(200, {"casUrl": self.hub.cdn, "accessToken": tok, "exp": exp}, h)
        return super().route(m, p)

    def shard(self, s):
        """register the files of a shard: rebuild each from its xorbs, check its sha256, keep it like any LFS object"""
        o = 48
        while s[o : o + 32] != b"\xff" * 32:
            fhash, flags, n = hexhash(s[o : o + 32]), *struct.unpack_from("<II", s, o + 32)
            o += 48
            terms = []
            for _ in range(n):
                _, size, a, b = struct.unpack_from("<IIII", s, o + 32)
                terms.append([hexhash(s[o : o + 32]), size, a, b])
                o += 48
            o += 48 * n if flags & 1 << 31 else 0
            sha = hexhash(s[o : o + 32]) if flags & 1 << 30 else None
            o += 48 if flags & 1 << 30 else 0
            h, tmp = hashlib.sha256(), self.hub.root / "tmp" / fhash
            with tmp.open("wb") as f:
                for xorb, size, a, b in terms:
                    if not (xp := self.xorb_path(xorb)).exists():
                        raise HttpError(400, f"unknown xorb {xorb}")
                    blob, got = xp.read_bytes(), 0
                    for i, (_, _, raw, scheme, (x, y)) in enumerate(chunks(blob)):
                        if a <= i < b:
                            d = unpack(blob[x:y], scheme, raw)
                            f.write(d)
                            h.update(d)
                            got += len(d)
                    if got != size:
                        raise HttpError(400, f"term of {xorb}: {got} bytes, announced {size}")
            if sha and sha != h.hexdigest():
                raise HttpError(400, "sha256 of the shard does not match the content")
            tmp.replace(self.hub.root / "lfs" / h.hexdigest())
            (self.hub.root / "xet" / f"sha-{h.hexdigest()}").write_text(fhash)
            (self.hub.root / "xet" / f"file-{fhash}").write_text(json.dumps(terms))

    def reconstruction(self, fhash):
        f = self.hub.root / "xet" / f"file-{fhash}"
        if not f.exists():
            raise HttpError(404, "unknown file")
        terms = json.loads(f.read_text())
        total = sum(t[1] for t in terms)
        m = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "bytes=0-")
        start, end = int(m[1]), min(int(m[2] or total - 1), total - 1)
        if start > end:
            return self.send(416, b"", {"Content-Range": f"bytes */{total}"})
        out, info, pos, off = [], {}, 0, 0
        for xorb, size, a, b in terms:
            if pos + size > start and pos <= end:
                if not out:
                    off = start - pos
                out.append({"hash": xorb, "unpacked_length": size, "range": {"start": a, "end": b}})
                cs = list(chunks(self.xorb_path(xorb).read_bytes()))
                e = {
                    "range": {"start": a, "end": b},
                    "url": f"{self.hub.cdn}/_xorb/{xorb}?sig={self.hub.sign('xorb' + xorb)}",
                    "url_range": {"start": cs[a][0], "end": cs[b - 1][0] + cs[b - 1][1] - 1},
                }
                if e not in info.setdefault(xorb, []):
                    info[xorb].append(e)
            pos += size
        self.send(200, {"offset_into_first_range": off, "terms": out, "fetch_info": info})

    # advertise the xet hash wherever the Hub does: resolve headers, tree and paths-info
    def xet_of(self, sha):
        f = self.hub.root / "xet" / f"sha-{sha}"
        return f.read_text() if sha and f.exists() else None

    def send(self, status, data=b"", headers=()):
        headers = dict(headers)
        if (sha := headers.get("X-Linked-Etag", "").strip('"')) and (x := self.xet_of(sha)):
            kind, repo = (
                self.path.split("/resolve/")[0].strip("/").split("/", 1)
                if self.path.startswith(("/datasets/", "/spaces/"))
                else ("models", self.path.split("/resolve/")[0].strip("/"))
            )
            headers["X-Xet-Hash"] = x
            headers["Link"] = (
                f'<{self.hub.url}/api/{kind}/{repo}/xet-read-token/{headers["X-Repo-Commit"]}>; rel="xet-auth"'
            )
        super().send(status, data, headers)

    def entry(self, *a):
        e = super().entry(*a)
        if e and "lfs" in e and (x := self.xet_of(e["lfs"]["oid"])):
            e["xetHash"] = x
        return e


class XetHub(server.Hub):
    """A Hub that large files can be pushed to by Xet."""

    handler = XetHandler
