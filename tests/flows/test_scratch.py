import json, os, signal, time
import pytest
from lsap_archive import open_archive, verify_archive


def kids(pid):
    import subprocess
    return [l.split(maxsplit=2) for l in subprocess.run(["ps","-eo","ppid=,pid=,args="],capture_output=True,text=True).stdout.splitlines() if int(l.split()[0])==pid]

@pytest.mark.parametrize("what", ["raylet", "gcs_server"])
def test_ray_dies(what, lsap, save_digits, tmp_path):
    save_digits(tmp_path/"i", range(12))
    c=lsap.invert("--json", source=tmp_path/"i", archive=tmp_path/"a", embedding__num_steps=20)
    while not list(tmp_path.glob("a/runs/*/_commit/*.json")): time.sleep(.02); assert not c.has_ended
    import subprocess; print(c.pid, subprocess.run('ps -eo ppid,pid,args | cut -c1-150 | grep -a -E "ray|pytest|fork"', shell=True,capture_output=True,text=True).stdout)
    k=[x for x in kids(c.pid) if what in x[2][:200]]; print([ (x[1],x[2][:100]) for x in k])
    os.kill(int(k[0][1]), 9); t=time.time()
    try: f=c.wait(200)
    except TimeoutError as e: print("TIMEOUT", e); return
    print("=====", what, time.time()-t, f.code, f.out, f.err[-3000:])
