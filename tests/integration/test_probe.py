import time
from tests.integration.test_faults import *
def test_probe(found) -> None:
    consortium = found()
    folder = consortium.server_dir.resolve()
    server = consortium.start_server(*on_a_small_disk(folder, 32 * MB))
    for name in SITES:
        consortium.start_site(name)
    consortium.await_sites()
    disk = SmallDisk(server, folder)
    for site in consortium.sites.values():
        site.order("evaluate-2", HOLD)
    run = consortium.run("patient")
    for site in consortium.sites.values():
        site.await_step("evaluate-2")
    disk.fill(leaving_bytes=0)
    for site in consortium.sites.values():
        site.release("evaluate-2")
    time.sleep(6)
    try:
        print(consortium.view(run))
    except Exception as e: print(e)
    for site in consortium.sites.values():
        print(site.log[-1500:])
    disk.free()
    view = consortium.await_run(run, lambda view: view.state is not RunState.RUNNING, "to end")
    print(view)
    print(disk.folder.joinpath("runs",run,"worker.log").read_text()[-3000:])
    view = consortium.require_whole(run)
    assert 0
