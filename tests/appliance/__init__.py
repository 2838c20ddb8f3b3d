"""Tests of the appliance with real containers, real systemd and real packages: `make test-appliance`."""
