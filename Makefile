# Everything runs as root on Debian 12. `make demo` is the main job, `make test` the tests; each sets up what it needs.
SHELL := /bin/bash
BUILD := $(CURDIR)/build
VENV  := $(BUILD)/venv
PY    := $(VENV)/bin/python
# The distribution's own tools first: QEMU's configure fails on a python that a version manager put in front.
export PATH := /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND := noninteractive

.DEFAULT_GOAL := help
.PHONY: help venv stack guest demo packages test unit lint integration show-upgrade show-coordinator \
        show-replication show-steering show-takeover show-fleet show-versions lint-ansible check-flower \
        check-sriov check-numa check-qemu patches-check clean

help: ## what can be made here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BUILD)/.packages: Makefile
	@mkdir -p $(BUILD)
	@missing=$$(for p in $(HOST_PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing: "$$missing; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >$(BUILD)/apt.log 2>&1 || { tail -n 20 $(BUILD)/apt.log; exit 1; }; \
	fi
	@touch $@

HOST_PACKAGES := python3-venv python3-dev pkg-config gcc libc6-dev libvirt-dev libvirt-daemon libvirt-daemon-system libvirt-clients qemu-system-x86 \
	openssh-client openssh-server iproute2 iputils-ping ethtool kmod cpio busybox-static linux-image-cloud-amd64 util-linux procps

$(VENV)/.ready: pyproject.toml $(BUILD)/.packages
	/usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check --retries 10 -e '.[dev,fleet]'
	@touch $@

venv: $(VENV)/.ready ## the coordinator and its tools in build/venv

stack: venv ## patched QEMU and OVS-DPDK in build/stack (cached)
	$(PY) -m upgrader.lab.stack

demo: stack ## the main job: build, lab up, upgrade a -> b -> a under traffic, stock restart, report
	$(PY) -m upgrader.lab.demo --report $(BUILD)/demo-report.json

lint: venv ## ruff, mypy --strict, import contract
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

lint-ansible: venv ## ansible-lint, production profile, and the playbooks' syntax
	$(PY) -m tests.support.collection lint

unit: venv ## tests that need neither root nor the stack
	$(PY) -m pytest -q tests/unit tests/contract

integration: stack ## tests on the real stack
	$(PY) -m pytest -q tests/integration

test: stack lint ## everything
	$(PY) -m pytest -q tests

check-qemu: stack ## QEMU's own vhost-user tests and the series' own, on the patched build
	$(PY) -m upgrader.lab.stack qemu --check

patches-check: venv ## form and pins of the series for the original versions; TREE_QEMU=DIR TREE_DPDK=DIR adds their lines there
	$(PY) -m upgrader.lab.patches_check $(if $(TREE_QEMU),--qemu "$(TREE_QEMU)") $(if $(TREE_DPDK),--dpdk "$(TREE_DPDK)")

show-upgrade: stack ## all that the live upgrade must show; PARTS="moves kill refused qtests numa demo test"
	$(PY) -m tests.show.upgrade $(PARTS)

show-coordinator: stack ## all that the coordinator must show; PARTS="simulated commands churn contracts daemon cli cost bench kills"
	$(PY) -m tests.show.coordinator $(PARTS)

show-replication: stack ## all that replication must show; PARTS="equal corpus follow control findings learned stale versions warm writer bench packet"
	$(PY) -m tests.show.replication $(PARTS)

check-flower: venv ## steering by tc flower, in a guest whose kernel has it (downloads 70 MB once)
	$(PY) -m tests.support.nic_guest

check-sriov: stack ## two VFs of a NIC that QEMU emulates, DPDK on one, in a guest (downloads 100 MB once)
	$(PY) -m tests.support.sriov_guest

check-numa: stack ## parked rings on the NUMA node of the guest's, in a guest with two (1 minute; downloads 70 MB once)
	$(PY) -m tests.support.numa_guest

show-steering: stack ## all that steering must show; PARTS="contract runs flower encoding model commands turns traffic sriov claims"
	$(PY) -m tests.show.steering $(PARTS)

show-takeover: stack ## all that takeover must show so far; PARTS="simulated tests kills deaths upgrades big daemon alarms cost" KILLS=20 DEATHS=10 VMS=4
	$(PY) -m tests.show.takeover $(PARTS)

packages: venv ## .deb packages in build/packages, judged by lintian; REVISION=1
	$(PY) -m upgrader.lab.packages --revision $(or $(REVISION),1)

show-versions: stack ## the original versions, built by hand; OLD_OVS=PREFIX OLD_QEMU=BINARY OLD_LIBVIRTD=PROGRAM PARTS="form pair crash mixed refused transcripts" TRIPS=50
	$(PY) -m tests.show.versions $(PARTS)

show-fleet: stack ## all that the fleet's tools must show; PARTS="modules fleet simulation install hosts packages systemd guest checks" HOSTS=6
	$(PY) -m tests.show.fleet $(PARTS)

clean: ## remove what was built
	rm -rf $(BUILD)
