"""Storage of the test Hub: repositories, commits, refs, pull requests and blobs as plain files (no git)."""

import contextlib
import fnmatch
import hashlib
import hmac
import json
import os
import re
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

LFS_PATTERNS = [
    "*.parquet",
    "*.arrow",
    "*.bin",
    "*.faiss",
    "*.index",
    "*.npy",
    "*.npz",
    "*.safetensors",
    "*.gz",
    "*.zst",
    "*.zip",
    "*.tar",
    "*.h5",
    "*.pkl",
]
GITATTRIBUTES = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in LFS_PATTERNS).encode()
TOKENS = {  # token -> (user, orgs it may write to)
    "hf_admin": ("alice", {"alice", "org"}),
    "hf_contrib": ("bob", {"bob"}),  # not a member of "org": may read public repos and open PRs, not commit to main
}


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(kind, data):
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def pointer(sha, size):
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n".encode()


class HttpError(Exception):
    def __init__(self, status, message, code=None, **headers):
        self.status, self.message, self.code, self.headers = status, message, code, headers


class Repo:
    """commits: oid -> {parents,title,message,author,date,tree}; tree: path -> [blob oid, size, lfs sha256 or None]"""

    def __init__(self, hub, kind, name, private=False, gated=False):
        self.hub, self.kind, self.name, self.private, self.created = hub, kind, name, private, now()
        self.gated, self.readers = gated, []  # readers: users whom a gated repository lets in
        self.refs, self.commits, self.discussions, self.id = {}, {}, [], uuid.uuid4().hex[:24]

    @property
    def file(self):
        return self.hub.root / "repos" / self.kind / (self.name + ".json")

    def save(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        tmp = self.file.with_suffix(".tmp")
        tmp.write_text(json.dumps({k: v for k, v in self.__dict__.items() if k != "hub"}))
        tmp.replace(self.file)

    def resolve(self, rev):
        for ref in (f"refs/heads/{rev}", f"refs/tags/{rev}", rev):
            if ref in self.refs:
                return self.refs[ref]
        if rev in self.commits:
            return rev
        if re.fullmatch("[0-9a-f]{7,39}", rev) and len(hits := [c for c in self.commits if c.startswith(rev)]) == 1:
            return hits[0]
        raise HttpError(404, f"Invalid rev id: {rev}", "RevisionNotFound")

    def tree(self, rev):
        oid = self.resolve(rev)
        return oid, self.commits[oid]["tree"]

    def commit(self, ref, parents, tree, title, message, author):
        body = {"parents": parents, "title": title, "message": message, "author": author, "date": now(), "tree": tree}
        oid = git_oid("commit", json.dumps(body, sort_keys=True).encode() + os.urandom(8))
        self.commits[oid], self.refs[ref] = body, oid
        self.save()
        return oid

    def history(self, oid):
        seen, todo = [], [oid]
        while todo:
            c = todo.pop(0)
            if c not in seen:
                seen.append(c)
                todo += self.commits[c]["parents"]
        return sorted(seen, key=lambda c: self.commits[c]["date"], reverse=True)

    def entry(self, oid, tree, path, expand=False):
        if path in tree:
            blob, size, sha = tree[path]
            d = {"type": "file", "oid": blob, "size": size, "path": path}
            if sha:
                d["lfs"] = {"oid": sha, "size": size, "pointerSize": len(pointer(sha, size))}
        elif sub := sorted((k, v) for k, v in tree.items() if k.startswith(path + "/")):
            d = {"type": "directory", "oid": git_oid("tree", json.dumps(sub).encode()), "size": 0, "path": path}
        else:
            return None
        if expand:
            d["lastCommit"] = self.last_commit(oid, path)
        return d

    def last_commit(self, oid, path):
        cur = self.commits[oid]["tree"].get(path)
        while (ps := self.commits[oid]["parents"]) and self.commits[ps[0]]["tree"].get(path) == cur:
            oid = ps[0]
        return {"id": oid, "title": self.commits[oid]["title"], "date": self.commits[oid]["date"]}

    def info(self, rev, blobs=False):
        oid, tree = self.tree(rev)
        card = {}
        e = tree.get("README.md")
        if e and (m := re.match(rb"---\n(.*?)\n---", self.hub.path_of(e).read_bytes(), re.S)):
            import yaml

            with contextlib.suppress(yaml.YAMLError):
                card = json.loads(json.dumps(yaml.safe_load(m[1]), default=str))
        sib = []
        for path, (blob, size, sha) in sorted(tree.items()):
            s = {"rfilename": path}
            if blobs:
                s.update(
                    size=size,
                    blobId=blob,
                    **({"lfs": {"sha256": sha, "size": size, "pointerSize": len(pointer(sha, size))}} if sha else {}),
                )
            sib.append(s)
        return {
            "_id": self.id,
            "id": self.name,
            "author": self.name.split("/")[0],
            "sha": oid,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "createdAt": self.created,
            "lastModified": self.commits[oid]["date"],
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": card,
            "siblings": sib,
            "usedStorage": sum(e[1] for e in tree.values()),
        }

    def event(self, d, user, kind, **data):
        e = {"id": uuid.uuid4().hex[:24], "type": kind, "createdAt": now(), "author": {"name": user}, "data": data}
        d["events"].append(e)
        return e

    def new_discussion(self, user, title, text, pr, status, base=None):
        d = {
            "num": len(self.discussions) + 1,
            "title": title,
            "status": status,
            "isPullRequest": pr,
            "createdAt": now(),
            "author": {"name": user},
            "repo": {"name": self.name, "type": self.kind},
            "events": [],
            "changes": {"base": "refs/heads/main"} if pr else None,
            "fork": base,
        }
        self.discussions.append(d)
        self.event(d, user, "comment", edited=False, hidden=False, latest={"raw": text})
        return d

    def conflicts(self, d):
        base, head, main = (
            self.commits[c]["tree"] for c in (d["fork"], self.refs[f"refs/pr/{d['num']}"], self.refs["refs/heads/main"])
        )
        mine = {k for k in base.keys() | head.keys() if base.get(k) != head.get(k)}
        bad = sorted(k for k in mine if main.get(k) != base.get(k) and main.get(k) != head.get(k))
        merged = {k: v for k, v in main.items() if k not in mine} | {k: head[k] for k in mine if k in head}
        return bad, merged, sorted(mine)


class Store:
    """All repositories, their blobs (git objects) and LFS objects, in one folder that outlives the server."""

    def __init__(self, root, tokens=TOKENS, cdn=True, lfs_threshold=10 << 20, multipart=64 << 20):
        self.root, self.tokens, self.use_cdn = Path(root), dict(tokens), cdn
        self.lfs_threshold, self.multipart, self.part = lfs_threshold, multipart, max(1 << 20, multipart // 2)
        self.secret, self.lock, self.log, self.faults, self.repos = os.urandom(16), threading.RLock(), [], [], {}
        for d in ("blobs", "lfs", "tmp"):
            (self.root / d).mkdir(parents=True, exist_ok=True)
        for f in (self.root / "repos").glob("*/*/*.json"):
            r = Repo.__new__(Repo)
            r.__dict__.update(json.loads(f.read_text()), hub=self)
            self.repos[r.kind, r.name.lower()] = r

    def put_blob(self, data):
        oid = git_oid("blob", data)
        if not (self.root / "blobs" / oid).exists():
            tmp = self.root / "tmp" / uuid.uuid4().hex
            tmp.write_bytes(data)
            tmp.replace(self.root / "blobs" / oid)
        return oid

    def publish(self, name, files, *, kind="model", private=False, gated=False, tag=None, user="alice"):
        """Commit {path: bytes} to main without a client, making the repository if need be; the commit. The files take
        the place of the whole tree. Large-file patterns go to LFS as on the Hub."""
        with self.lock:
            r = self.repos.setdefault((kind, name.lower()), Repo(self, kind, name, private, gated))
            tree = {path: self.put_file(path, data) for path, data in files.items()}
            parents = [r.refs["refs/heads/main"]] if r.refs else []
            oid = r.commit("refs/heads/main", parents, tree, "publish", "", user)
            if tag:
                r.refs[f"refs/tags/{tag}"] = oid
                r.save()
        return oid

    def put_file(self, path, data):
        if not any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS):
            return [self.put_blob(data), len(data), None]
        sha = hashlib.sha256(data).hexdigest()
        (self.root / "lfs" / sha).write_bytes(data)
        return [git_oid("blob", pointer(sha, len(data))), len(data), sha]

    def sign(self, what):
        return hmac.new(self.secret, what.encode(), "sha256").hexdigest()[:24]

    def signed(self, what):
        return f"{self.cdn}/_lfs/{what}?sig={self.sign(what)}"

    def path_of(self, entry):
        return self.root / "lfs" / entry[2] if entry[2] else self.root / "blobs" / entry[0]
