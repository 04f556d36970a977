"""A production line on this machine: ``make demo``.

A realm is made, some stations give several hundred vehicles their identities, and somebody tries everything
that must not work.  Then the realm publishes, two operators recall what one station made, and in the end all
of it is verified with other people's programs.  Nothing is acted: each line that begins with ``$`` is the
real command, run as shown, and each expectation is checked.

    line.py         this file: only the way in
    production.py   the whole story, chapter by chapter
    realm.py        the directory, the ``birthmark`` command, the server, token and database
    floor.py        the stations at work, and what the screen shows of them
    station.py      ONE STATION: what a fixture's software looks like.  Read this one first
    trials.py       everything that must not work
    publication.py  the public role, and what relying parties see of it
    recall.py       a recall by two operators
    audit.py        the verification afterwards
    screen.py, vins.py, proxy.py, foreign.py, waiting.py   how it is shown, and what it takes

With ``--gateway`` it goes on outside: vehicles report to the gateway, and who must not is turned away:

    field.py           the story
    field_line.py      its realm, and how its vehicles come to be
    field_devices.py   what vehicles have on board: curl, openssl and a shell
    field_trials.py    whom the gateway turns away
    field_fleet.py     another fleet, whose authority OpenSSL made
    field_upstream.py  the application behind: tokens, and headers through nginx

With ``--element scp03`` another story is told, of devices with secure elements in readers:

    chips.py         the story
    makers.py        master keys, the elements' maker's and ours, and the profile that names them
    readers.py       pcscd with virtual readers, and the elements in them
    chip_station.py  ONE STATION with readers
    chip_trials.py   elements that break and lie, and a station that does
    chip_audit.py    what the record says of key sets, held against the elements
"""

import sys
from pathlib import Path

# Started as a file, Python looks for modules beside it; the demo is a package of this project.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from demo.production import main  # noqa: E402  # the line above has to come first

if __name__ == "__main__":
    sys.exit(main())
