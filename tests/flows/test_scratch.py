import json, os, signal, time
import pytest
from lsap_archive import open_archive, verify_archive

def test_two(lsap_on_cluster, save_digits, tmp_path):
    save_digits(tmp_path/"i", range(12))
    cs=[lsap_on_cluster.invert("--json", source=tmp_path/"i", archive=tmp_path/"a", embedding__num_steps=4) for _ in range(2)]
    fs=[c.wait() for c in cs]
    for f in fs: print(f.code, f.out[-200:], f.err[-3000:])
    print(verify_archive(str(tmp_path/"a")))

def test_sigint(lsap_on_cluster, save_digits, tmp_path, ray_cluster):
  for sig in (signal.SIGINT, signal.SIGTERM):
    save_digits(tmp_path/"i", range(12))
    c=lsap_on_cluster.invert("--json", source=tmp_path/"i", archive=tmp_path/f"a{sig}", embedding__num_steps=40)
    while not ray_cluster.workers(at_work=True): time.sleep(.02)
    os.kill(c.pid, sig); t=time.time()
    f=c.wait(60)
    print("=====", sig, time.time()-t, f.code, f.out, f.err[-3000:])
    print(ray_cluster.workers(at_work=False))

def test_bucket(lsap_on_cluster, save_digits, tmp_path):
    save_digits(tmp_path/"i", range(4))
    f=lsap_on_cluster.invert(source=tmp_path/"i", archive="s3://nobucket/a", embedding__num_steps=4).wait()
    print(f.code, f.out, f.err)

def test_outage(lsap_on_cluster, save_digits, tmp_path, s3_server):
    save_digits(tmp_path/"i", range(24))
    c=lsap_on_cluster.invert(source=tmp_path/"i", archive="s3://lsap/outage", embedding__num_steps=10)
    while "shard" not in c.text("err").replace("shards",""): time.sleep(.05)
    server, port = s3_server
    server.stop()
    print("STOPPED", time.time())
    time.sleep(8)
    from moto.server import ThreadedMotoServer
    s=ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False); s.start()
    f=c.wait(); s.stop()
    print(f.code, f.out, f.err)
