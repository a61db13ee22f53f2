"""The Hub's protocol over HTTP, as far as the real client uses it for models and datasets. Standard library only.

Two listeners: the Hub (`hub.url`) and a "CDN" on another port, that is another *origin*, which serves and accepts LFS
bytes by signed URL and refuses an Authorization header, as object stores do. There is no Xet store here (see xet.py):
uploads need HF_HUB_DISABLE_XET=1, downloads need nothing.
"""

import base64
import contextlib
import fnmatch
import hashlib
import hmac
import json
import os
import re
import tempfile
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .store import GITATTRIBUTES, LFS_PATTERNS, HttpError, Repo, Store, git_oid, pointer


class Handler(BaseHTTPRequestHandler):
    protocol_version, server_version, hub = "HTTP/1.1", "minihub/1", None
    disable_nagle_algorithm, wbufsize = True, 1 << 16  # without these every small answer waits ~40 ms (delayed ACK)

    # ---- plumbing
    def log_message(self, *a):
        pass

    def body(self):
        """iterate over the request body (Content-Length or chunked)"""
        self.unread = False
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left and (chunk := self.rfile.read(min(left, 1 << 20))):
                left -= len(chunk)
                yield chunk

    def json(self):
        data = b"".join(self.body())
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(data or b"{}")
        return parse_qs(data.decode())  # paths-info is form-encoded

    def send(self, status, data=b"", headers=()):
        if self.fault and self.fault.get("drop") == "after":  # done, but nobody is told
            self.close_connection = True
            return self.record(0, 0)
        if not isinstance(data, bytes):
            data, headers = json.dumps(data).encode(), {"Content-Type": "application/json", **dict(headers)}
        self.send_response(status)
        for k, v in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.record(status, len(data))

    def record(self, status, n):
        self.hub.log.append((self.command, self.path, status, n, self.headers.get("Range")))

    def send_file(self, path, headers):
        size, rng = path.stat().st_size, self.headers.get("Range")
        if self.fault and self.fault.get("whole"):
            rng = None
        start, end, status = 0, size - 1, 200
        if rng and (m := re.fullmatch(r"bytes=(\d*)-(\d*)", rng.strip())) and any(m.groups()):
            a, b = m.groups()
            start, end = (int(a), min(int(b or size - 1), size - 1)) if a else (max(0, size - int(b)), size - 1)
            if start > end:
                return self.send(416, b"", {"Content-Range": f"bytes */{size}"})
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}
        n = end - start + 1
        self.send_response(status)
        for k, v in {"Accept-Ranges": "bytes", "Content-Length": str(n), **headers}.items():
            self.send_header(k, v)
        self.end_headers()
        cut = self.fault and self.fault.get("cut")
        if self.command != "HEAD":
            with path.open("rb") as f:
                f.seek(start)
                left = n if cut is None else min(n, cut)
                while left and (chunk := f.read(min(left, 1 << 20))):
                    if self.fault and self.fault.get("lie"):
                        chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
                    self.wfile.write(chunk)
                    left -= len(chunk)
            if cut is not None and cut < n:  # fault: cut the connection in the middle of the body
                self.wfile.flush()
                self.close_connection = True
                n = cut
        self.record(status, n if self.command != "HEAD" else 0)

    def handle_any(self):
        url = urlsplit(self.path)
        self.unread = True
        self.q = {k: v[-1] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        parts = [unquote(p) for p in url.path.strip("/").split("/")]  # split first: "refs%2Fpr%2F1" is one segment
        self.fault = next(
            (f for f in self.hub.faults if f.get("times", 1) > 0 and re.search(f["match"], self.path)), None
        )
        try:
            if self.fault:
                self.fault["times"] = self.fault.get("times", 1) - 1
                time.sleep(self.fault.get("slow", 0))
                if self.fault.get("drop") == "before":
                    self.close_connection = True
                    return self.record(0, 0)
                if "status" in self.fault:
                    raise HttpError(self.fault["status"], "injected fault")
            self.authenticate(parts)
            self.route("GET" if self.command == "HEAD" else self.command, parts)
        except HttpError as e:
            if self.unread:  # keep-alive: the body must be consumed before the next request
                for _ in self.body():
                    pass
            h = {
                "X-Error-Message": e.message.replace("\n", " "),
                **({"X-Error-Code": e.code} if e.code else {}),
                **e.headers,
            }
            self.send(e.status, {"error": e.message}, h)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception:  # noqa: BLE001  a bug of this server: say so at once (the client would retry a 500 for a minute)
            traceback.print_exc()
            self.close_connection = True
            self.send(501, {"error": traceback.format_exc(limit=-1)})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  (names that http.server looks for)

    # ---- auth
    def authenticate(self, parts):
        h = self.headers.get("Authorization")
        self.user, self.orgs = None, set()
        if parts[0] == "_lfs" and parts[1] != "verify":
            if h:
                raise HttpError(400, "Only one auth mechanism allowed")  # what S3 answers
        elif h:
            if h.removeprefix("Bearer ") not in self.hub.tokens:
                raise HttpError(401, "Invalid credentials in Authorization header")
            self.user, self.orgs = self.hub.tokens[h.removeprefix("Bearer ")]

    def need_user(self):
        if not self.user:
            raise HttpError(401, "Invalid username or password.")

    def repo(self, kind, name, write=False):
        r = self.hub.repos.get((kind, name.lower()))
        if write and r:
            self.need_user()
        if r is None or (r.private and name.split("/")[0] not in self.orgs):
            raise HttpError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and r.name.split("/")[0] not in self.orgs:
            raise HttpError(403, "You don't have the rights to write to this repo")
        return r

    # ---- routing
    def route(self, m, p):
        if p[0] == "_lfs":
            return self.lfs_object(m, p)
        if p[0] == "api":
            if p[1] == "whoami-v2":
                self.need_user()
                orgs = [{"type": "org", "name": o, "roleInOrg": "write"} for o in sorted(self.orgs - {self.user})]
                auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
                return self.send(
                    200, {"type": "user", "name": self.user, "fullname": self.user, "orgs": orgs, "auth": auth}
                )
            if p[1] == "validate-yaml":
                return self.validate_yaml(self.json())
            if p[1] == "repos":
                return self.repos_api(m, p[2], self.json())
            if len(p) == 2 and p[1] in ("models", "datasets", "spaces"):
                rs = [
                    r
                    for (k, _), r in self.hub.repos.items()
                    if k == p[1][:-1] and not (r.private and r.name.split("/")[0] not in self.orgs)
                ]
                rs = [
                    r
                    for r in rs
                    if self.q.get("author", r.name.split("/")[0]) == r.name.split("/")[0]
                    and self.q.get("search", "") in r.name
                ]
                return self.send(200, [r.info("main") for r in rs])
            if len(p) >= 4 and p[1] in ("models", "datasets", "spaces"):
                return self.repo_api(m, p[1][:-1], f"{p[2]}/{p[3]}", p[4] if len(p) > 4 else None, p[5:])
            raise HttpError(404, "Not found")
        kind = p.pop(0)[:-1] if p[0] in ("datasets", "spaces") else "model"
        if len(p) >= 5 and p[2] == "resolve":
            rev, path = (p[3], p[4:]) if p[3] != "refs" else ("/".join(p[3:6]), p[6:])
            return self.resolve(kind, f"{p[0]}/{p[1]}", rev, "/".join(path))
        if len(p) >= 3 and p[1].endswith(".git") and p[2:] == ["info", "lfs", "objects", "batch"]:
            return self.lfs_batch(kind, f"{p[0]}/{p[1][:-4]}")
        raise HttpError(404, "Not found")

    def validate_yaml(self, d):
        text, warn = d["content"], []
        if m := re.match(r"---\n(.*?)\n---", text, re.S):
            import yaml

            try:
                yaml.safe_load(m[1])
            except yaml.YAMLError as e:
                return self.send(400, {"errors": [{"message": str(e)}], "warnings": []})
        else:
            warn = [{"message": "empty or missing yaml metadata in repo card"}]
        self.send(200, {"errors": [], "warnings": warn})

    def repos_api(self, m, verb, d):
        self.need_user()
        kind, name = d.get("type") or "model", f"{d.get('organization') or self.user}/{d['name']}"
        if name.split("/")[0] not in self.orgs:
            raise HttpError(
                403, f'You don\'t have the rights to create a {kind} under the namespace "{name.split("/")[0]}"'
            )
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        with self.hub.lock:
            if verb == "create":
                if (kind, name.lower()) in self.hub.repos:
                    return self.send(409, {"error": f"You already created this {kind} repo", "url": url})
                r = self.hub.repos[kind, name.lower()] = Repo(
                    self.hub, kind, name, (d.get("visibility") == "private") or bool(d.get("private"))
                )
                entry = [self.hub.put_blob(GITATTRIBUTES), len(GITATTRIBUTES), None]
                r.commit("refs/heads/main", [], {".gitattributes": entry}, "initial commit", "", self.user)
                return self.send(200, {"url": url, "name": name, "id": r.id})
            if verb == "delete":
                r = self.repo(kind, name, write=True)
                r.file.unlink()
                del self.hub.repos[kind, name.lower()]
                return self.send(200, {})
        raise HttpError(404, "Not found")

    # ---- /api/{kind}s/{repo}/...
    def repo_api(self, m, kind, name, verb, rest):
        pr = bool(self.q.get("create_pr"))
        write = (
            m != "GET" and verb not in ("paths-info", "discussions") and not (verb in ("preupload", "commit") and pr)
        )
        r = self.repo(kind, name, write and not (verb in ("preupload", "commit") and rest[0].startswith("refs/pr/")))
        if m == "GET" and verb in (None, "revision"):
            return self.send(200, r.info(rest[0] if rest else "main", self.q.get("blobs", "").lower() in ("1", "true")))
        if m == "GET" and verb == "tree":
            return self.tree(r, rest[0], "/".join(rest[1:]))
        if verb == "paths-info":
            return self.paths_info(r, rest[0], self.json())
        if m == "GET" and verb == "refs":

            def ls(prefix, strip=True):
                return [
                    {"name": k[len(prefix) :] if strip else k, "ref": k, "targetCommit": v}
                    for k, v in r.refs.items()
                    if k.startswith(prefix)
                ]

            return self.send(
                200,
                {
                    "branches": ls("refs/heads/"),
                    "tags": ls("refs/tags/"),
                    "converts": [],
                    "pullRequests": ls("refs/pr/", False),
                },
            )
        if m == "GET" and verb == "commits":
            cs = [
                {
                    "id": c,
                    "title": r.commits[c]["title"],
                    "message": r.commits[c]["message"],
                    "date": r.commits[c]["date"],
                    "authors": [{"user": r.commits[c]["author"]}],
                }
                for c in r.history(r.resolve(rest[0]))
            ]
            return self.page(cs, 50)
        if verb in ("branch", "tag"):
            with self.hub.lock:
                d = self.json()
                ref = (
                    f"refs/heads/{rest[0]}" if verb == "branch" else f"refs/tags/{d['tag'] if m == 'POST' else rest[0]}"
                )
                if m == "DELETE":
                    r.refs.pop(ref) if ref in r.refs else r.resolve(rest[0])
                elif ref in r.refs:
                    raise HttpError(409, f"Reference already exists: {ref}")
                else:
                    r.refs[ref] = r.resolve(rest[0] if verb == "tag" else d.get("startingPoint") or "main")
                r.save()
            return self.send(200, {})
        if verb == "preupload":
            self.need_user()
            tree = r.tree(rest[0])[1]
            return self.send(200, {"files": [self.upload_mode(f, tree) for f in self.json()["files"]]})
        if verb == "commit":
            return self.commit(r, rest[0], pr)
        if verb == "discussions":
            return self.discussions(m, r, rest)
        raise HttpError(404, f"Not found: {verb}")  # incl. xet-{read,write}-token: this server has no Xet storage

    def entry(self, r, oid, tree, path, expand):  # hook: server_xet adds xetHash here
        return r.entry(oid, tree, path, expand)

    def page(self, items, default, extra=()):
        limit, cur = int(self.q.get("limit", default)), int(self.q.get("cursor", 0))
        h = dict(extra)
        if cur + limit < len(items):
            q = "&".join(f"{k}={quote(v)}" for k, v in {**self.q, "cursor": str(cur + limit)}.items())
            h["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{q}>; rel="next"'
        self.send(200, items[cur : cur + limit], h)

    def tree(self, r, rev, prefix):
        oid, tree = r.tree(rev)
        pre = prefix.strip("/") + "/" if prefix.strip("/") else ""
        names = set()
        for path in tree:
            if path.startswith(pre):
                rel = path[len(pre) :].split("/")
                depth = len(rel) if self.q.get("recursive", "").lower() in ("1", "true") else 1
                names |= {pre + "/".join(rel[:i]) for i in range(1, depth + 1)}
        if pre and not names:
            raise HttpError(404, f'{prefix} does not exist on "{rev}"', "EntryNotFound")
        expand = self.q.get("expand", "").lower() in ("1", "true")
        self.page(
            [self.entry(r, oid, tree, n, expand) for n in sorted(names)], 50 if expand else 1000, {"X-Repo-Commit": oid}
        )

    def paths_info(self, r, rev, d):
        oid, tree = r.tree(rev)
        expand = (
            str((d.get("expand") or ["false"])[0] if isinstance(d.get("expand"), list) else d.get("expand")).lower()
            == "true"
        )
        paths = d["paths"] if isinstance(d["paths"], list) else [d["paths"]]
        self.send(200, [e for p in paths if (e := self.entry(r, oid, tree, p.strip("/"), expand))])

    # ---- write path
    def upload_mode(self, f, tree):
        sample = base64.b64decode(f.get("sample", ""))
        lfs = (
            f["size"] >= self.hub.lfs_threshold
            or b"\0" in sample
            or any(fnmatch.fnmatch(f["path"].split("/")[-1], p) for p in LFS_PATTERNS)
        )
        old = tree.get(f["path"])
        return {
            "path": f["path"],
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": False,
            "oid": old and (old[2] or old[0]),
        }

    def commit(self, r, rev, pr):
        self.need_user()
        lines = [json.loads(x) for x in b"".join(self.body()).splitlines() if x.strip()]
        head = next(x["value"] for x in lines if x["key"] == "header")
        with self.hub.lock:
            base = r.resolve(rev)
            ref = next((k for k in (f"refs/heads/{rev}", rev) if k in r.refs), None)
            if ref is None:
                raise HttpError(400, f'Cannot commit to "{rev}": not a branch')
            if ref.startswith("refs/pr/"):
                d = r.discussions[int(ref.split("/")[-1]) - 1]
                if self.user != d["author"]["name"] and r.name.split("/")[0] not in self.orgs:
                    raise HttpError(403, "Only the author of the pull request or a maintainer can push to it")
            if want := head.get("parentCommit"):
                if pr:
                    base = r.resolve(want)
                elif not base.startswith(want):
                    raise HttpError(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(r.commits[base]["tree"])
            for key, v in ((x["key"], x["value"]) for x in lines if x["key"] != "header"):
                path = v["path"]
                if key == "file":
                    data = base64.b64decode(v["content"]) if v.get("encoding") == "base64" else v["content"].encode()
                    if len(data) > self.hub.lfs_threshold:
                        raise HttpError(
                            400, f"File {path} is over {self.hub.lfs_threshold} bytes: it must be uploaded with LFS"
                        )
                    tree[path] = [self.hub.put_blob(data), len(data), None]
                elif key == "lfsFile":
                    f = self.hub.root / "lfs" / v["oid"]
                    if not re.fullmatch("[0-9a-f]{64}", v["oid"]) or not f.exists():
                        raise HttpError(400, f"LFS pointer pointed to a file that does not exist: {path}")
                    size = f.stat().st_size
                    tree[path] = [git_oid("blob", pointer(v["oid"], size)), size, v["oid"]]
                elif key in ("deletedFile", "deletedFolder"):
                    gone = [
                        k
                        for k in tree
                        if k == path or (key == "deletedFolder" and k.startswith(path.rstrip("/") + "/"))
                    ]
                    if not gone:
                        raise HttpError(404, "A file with this name doesn't exist", "EntryNotFound")
                    for k in gone:
                        del tree[k]
                else:
                    raise HttpError(400, f"unknown operation {key}")
            if pr:
                num = r.new_discussion(self.user, head["summary"], head.get("description", ""), True, "open", base)[
                    "num"
                ]
                ref = f"refs/pr/{num}"
            oid = r.commit(ref, [base], tree, head["summary"], head.get("description", ""), self.user)
            if ref.startswith("refs/pr/"):
                r.event(
                    r.discussions[int(ref.split("/")[-1]) - 1], self.user, "commit", subject=head["summary"], oid=oid
                )
                r.save()
        root = f"{self.hub.url}/{'' if r.kind == 'model' else r.kind + 's/'}{r.name}"
        self.send(
            200,
            dict(
                success=True,
                commitOid=oid,
                commitUrl=f"{root}/commit/{oid}",
                hookOutput="",
                **({"pullRequestUrl": f"{root}/discussions/{num}"} if pr else {}),
            ),
        )

    # ---- discussions and pull requests
    def discussions(self, m, r, rest):
        if m == "GET" and not rest:
            kind, st = self.q.get("type", "all"), self.q.get("status", "all")
            ds = [d for d in r.discussions if kind == "all" or d["isPullRequest"] == (kind == "pull_request")]
            ds = [d for d in ds if st == "all" or (d["status"] in ("open", "draft")) == (st == "open")]
            return self.send(200, {"discussions": ds, "count": len(ds), "start": 0})
        with self.hub.lock:
            if m == "POST" and not rest:
                self.need_user()
                b = self.json()
                pr = bool(b.get("pullRequest"))
                d = r.new_discussion(
                    self.user,
                    b["title"],
                    b.get("description", ""),
                    pr,
                    "draft" if pr else "open",
                    r.refs["refs/heads/main"],
                )
                if pr:
                    r.refs[f"refs/pr/{d['num']}"] = r.refs["refs/heads/main"]
                r.save()
                return self.send(200, {"num": d["num"], "pullRequest": pr})
            num = int(rest[0])
            if not 0 < num <= len(r.discussions):
                raise HttpError(404, "Discussion not found")
            d = r.discussions[num - 1]
            if m == "GET":
                bad, _, mine = r.conflicts(d) if d["isPullRequest"] and d["status"] != "merged" else ([], 0, [])
                return self.send(
                    200, {**d, "filesWithConflicts": bad, "diff": "".join(f"diff --git a/{k} b/{k}\n" for k in mine)}
                )
            self.need_user()
            b, owner = self.json() or {}, r.name.split("/")[0] in self.orgs
            if rest[1] == "comment":
                e = r.event(d, self.user, "comment", edited=False, hidden=False, latest={"raw": b["comment"]})
            elif rest[1] in ("merge", "status") and not (
                owner or (rest[1] == "status" and d["author"]["name"] == self.user)
            ):
                raise HttpError(403, f"You don't have the rights to {rest[1]} this discussion")
            elif rest[1] == "status":
                d["status"], e = b["status"], r.event(d, self.user, "status-change", status=b["status"])
            elif rest[1] == "merge":
                bad, merged, _ = r.conflicts(d)
                if d["status"] != "open" or bad:
                    raise HttpError(400, f"Cannot merge: status={d['status']} conflicts={bad}")
                oid = r.commit(
                    "refs/heads/main",
                    [r.refs["refs/heads/main"], r.refs[f"refs/pr/{num}"]],
                    merged,
                    d["title"] + f" (#{num})",
                    "",
                    self.user,
                )
                d["status"], d["changes"]["mergeCommitId"], e = (
                    "merged",
                    oid,
                    r.event(d, self.user, "status-change", status="merged"),
                )
            else:
                raise HttpError(404, "Not found")
            r.save()
            self.send(200, {"newStatus": e, "newMessage": e})

    # ---- bytes
    def resolve(self, kind, name, rev, path):
        r = self.repo(kind, name)
        if r.gated and self.user not in r.readers:
            raise HttpError(403 if self.user else 401, f"Access to model {name} is restricted", "GatedRepo")
        oid, tree = r.tree(rev)
        e = tree.get(path)
        if e is None:
            raise HttpError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": oid})
        h = {
            "X-Repo-Commit": oid,
            "ETag": f'"{e[2] or e[0]}"',
            "Content-Disposition": f'inline; filename="{path.split("/")[-1]}";',
        }
        if e[2]:
            h.update({"X-Linked-Size": str(e[1]), "X-Linked-Etag": f'"{e[2]}"'})
            if self.hub.use_cdn:
                return self.send(302, b"", {**h, "Location": self.hub.signed(e[2])})
        self.send_file(self.hub.path_of(e), h)

    def lfs_batch(self, kind, name):
        d = self.json()
        self.need_user()
        # who may not write may still upload objects when no target ref is given (create_pr) or it is a PR ref
        ref = (d.get("ref") or {}).get("name", "refs/pr/")
        _r, out = self.repo(kind, name, write=not ref.startswith("refs/pr/")), []
        for o in d["objects"]:
            a = {"oid": o["oid"], "size": o["size"]}
            if not (self.hub.root / "lfs" / o["oid"]).exists():
                up = {"href": self.hub.signed(o["oid"])}
                if o["size"] > self.hub.multipart and "multipart" in d.get("transfers", []):
                    n = -(-o["size"] // self.hub.part)
                    up = {
                        "href": self.hub.signed(f"complete/{o['oid']}"),
                        "header": {
                            "chunk_size": str(self.hub.part),
                            **{str(i): self.hub.signed(f"part/{o['oid']}/{i}") for i in range(1, n + 1)},
                        },
                    }
                a["actions"] = {
                    "upload": up,
                    "verify": {"href": self.hub.signed(f"verify/{o['oid']}").replace(self.hub.cdn, self.hub.url)},
                }
            out.append(a)
        self.send(200, {"transfer": "basic", "objects": out}, {"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_object(self, m, p):
        what = "/".join(p[1:])
        if not hmac.compare_digest(self.q.get("sig", ""), self.hub.sign(what)):
            raise HttpError(403, "SignatureDoesNotMatch")
        lfs, tmp = self.hub.root / "lfs", self.hub.root / "tmp"
        if m in ("GET", "HEAD"):
            return self.send_file(lfs / p[1], {"ETag": f'"{p[1]}"'})
        if p[1] == "part":
            with (tmp / f"{p[2]}.{p[3]}").open("wb") as f:
                f.writelines(self.body())
            return self.send(200, b"", {"ETag": f'"{p[2][:8]}-{p[3]}"'})
        if p[1] == "complete":
            parts = sorted(self.json_any()["parts"], key=lambda x: x["partNumber"])
            files = [tmp / f"{p[2]}.{x['partNumber']}" for x in parts]
            return self.store(p[2], (f.read_bytes() for f in files), files)
        if p[1] == "verify":
            d = self.json_any()
            f = lfs / p[2]
            return self.send(200 if f.exists() and f.stat().st_size == d["size"] else 404, {})
        self.store(p[1], self.body())

    def json_any(self):
        return json.loads(b"".join(self.body()))

    def store(self, sha, chunks, cleanup=()):
        fd, name = tempfile.mkstemp(dir=self.hub.root / "tmp")
        h = hashlib.sha256()
        with os.fdopen(fd, "wb") as f:
            for c in chunks:
                h.update(c)
                f.write(c)
        if h.hexdigest() != sha:
            Path(name).unlink()
            raise HttpError(400, "BadDigest: the content does not have the announced sha256")
        Path(name).replace(self.hub.root / "lfs" / sha)
        for f in cleanup:
            f.unlink()
        self.send(200, b"", {"ETag": f'"{sha}"'})


class Hub(Store):
    """A Hub to test against: `with Hub(folder).run() as hub`, then HF_ENDPOINT=hub.url for the client.

    log: (method, path, status, bytes, Range) of every request. faults: dicts with `match` (regex on the path), `times`,
    and one of `status` (answer that), `cut` (close the connection after so many bytes of the body), `lie` (another byte
    than the file has), `whole` (all of the file although a range was asked for), `slow` (seconds before the answer),
    `drop` ("before": hang up and do nothing; "after": do it and hang up).
    """

    handler = Handler

    @contextlib.contextmanager
    def run(self, host="127.0.0.1"):
        servers = []
        for _ in range(2):
            s = ThreadingHTTPServer((host, 0), type("BoundHandler", (self.handler,), {"hub": self}))
            s.daemon_threads = True
            threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            servers.append(s)
        self.url, self.cdn = (f"http://{host}:{s.server_port}" for s in servers)
        try:
            yield self
        finally:
            for s in servers:
                s.shutdown()
                s.server_close()
