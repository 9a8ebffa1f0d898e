/*
 * Preloaded (or called through ctypes), it stands between a program and the kernel's ethtool ioctl.
 *
 * NIC_RECORD=FILE  append every rule command as a line of hex: what the program handed the kernel
 * NIC_NETLINK=FILE append every netlink message that the program sends by sendmsg, sendto or send, as a line of hex
 * NIC_STATE=FILE   play an X710 (i40e): rules, driver information and behaviour live in that file, shared by all
 *                  programs that have it; tests/support/fake_nic.py lays it out
 *
 * The model follows the two drivers' i40e_ethtool.c as read: a replace is a delete and an add, a duplicate at another
 * location is refused, one input set a flow type, whole-field masks only, a rule may be taken and never take effect, a VF
 * that was reset is no target of older rules, cloud filters come back without masks and, where the driver was loaded
 * without l4mode, without their port. It proves bytes and the handling of what a driver answers; it steers nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#include <net/if.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>

#define MAX_RULES 1024
#define MAX_VFS 8
#define VF_QUEUES 4
#define ANY_QUEUE 0xffff
#define CLOUD (1ULL << 63)
#define TUNNEL_AND_VNI 0xffffffffULL

struct rule {
	struct ethtool_rx_flow_spec fs;
	uint32_t cloud;		/* a cloud filter of the out-of-tree driver */
	uint32_t effective;	/* the hardware has it */
	uint32_t generation;	/* of its VF when it was programmed */
	uint32_t pad;
};

struct nic {
	char driver[32], version[32], firmware[32], bus[32];
	uint32_t out_of_tree, l4mode, ntuple, table, vfs;
	uint32_t gap_us;	/* between delete and add of a replace */
	uint32_t drop_next;	/* so many inserts are taken and never take effect */
	uint32_t refuse_next;	/* so many inserts fail after the old rule went */
	uint32_t generation[MAX_VFS];
	uint32_t count;
	uint32_t inserts, deletes, cloud_requests;	/* seen so far */
	struct rule rules[MAX_RULES];
};

static uint64_t user_def(const struct ethtool_flow_ext *ext)
{
	uint64_t v;

	memcpy(&v, ext->data, sizeof v);
	return be64toh(v);
}

static void put_user_def(struct ethtool_flow_ext *ext, uint64_t v)
{
	v = htobe64(v);
	memcpy(ext->data, &v, sizeof v);
}

static void record(const char *dev, const void *p)
{
	const char *path = getenv("NIC_RECORD");
	const unsigned char *b = p;
	FILE *f;

	if (!path || !(f = fopen(path, "a")))
		return;
	fprintf(f, "%s ", dev);
	for (size_t i = 0; i < sizeof(struct ethtool_rxnfc); i++)
		fprintf(f, "%02x", b[i]);
	fputc('\n', f);
	fclose(f);
}

static void record_netlink(int fd, const struct iovec *parts, size_t count)
{
	const char *path = getenv("NIC_NETLINK");
	struct sockaddr_storage at;
	socklen_t length = sizeof at;
	FILE *f;

	if (!path || getsockname(fd, (void *)&at, &length) || at.ss_family != AF_NETLINK || !(f = fopen(path, "a")))
		return;
	for (size_t p = 0; p < count; p++)
		for (size_t i = 0; i < parts[p].iov_len; i++)
			fprintf(f, "%02x", ((unsigned char *)parts[p].iov_base)[i]);
	fputc('\n', f);
	fclose(f);
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	static ssize_t (*real)(int, const struct msghdr *, int);

	if (!real)
		real = dlsym(RTLD_NEXT, "sendmsg");
	record_netlink(fd, m->msg_iov, m->msg_iovlen);
	return real(fd, m, flags);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
	static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
	struct iovec part = { (void *)data, size };

	if (!real)
		real = dlsym(RTLD_NEXT, "sendto");
	record_netlink(fd, &part, 1);
	return real(fd, data, size, flags, to, length);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
	static ssize_t (*real)(int, const void *, size_t, int);
	struct iovec part = { (void *)data, size };

	if (!real)
		real = dlsym(RTLD_NEXT, "send");
	record_netlink(fd, &part, 1);
	return real(fd, data, size, flags);
}

static struct nic *attach(void)
{
	static struct nic *nic;
	static char of[4096];
	const char *path = getenv("NIC_STATE");
	int fd;

	if (!path)
		return NULL;
	if (nic && !strcmp(of, path))
		return nic;
	if (nic)
		munmap(nic, sizeof *nic);
	nic = NULL;
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	nic = mmap(NULL, sizeof *nic, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (nic == MAP_FAILED)
		nic = NULL;
	else
		snprintf(of, sizeof of, "%s", path);
	return nic;
}

static int fail(int code)
{
	errno = code;
	return -1;
}

static struct rule *at(struct nic *n, uint32_t location)
{
	for (uint32_t i = 0; i < n->count; i++)
		if (n->rules[i].fs.location == location)
			return &n->rules[i];
	return NULL;
}

static void forget(struct nic *n, struct rule *r)
{
	*r = n->rules[--n->count];
}

static uint32_t flow_of(const struct ethtool_rx_flow_spec *fs)
{
	return fs->flow_type & ~(FLOW_EXT | FLOW_MAC_EXT);
}

/* Every byte of a field's mask alike: fields are at least that fine. */
static int whole_masks(const struct ethtool_rx_flow_spec *fs)
{
	const unsigned char *m = (const void *)&fs->m_u;

	for (size_t i = 0; i < sizeof fs->m_u; i++)
		if (m[i] != 0 && m[i] != 0xff)
			return 0;
	return 1;
}

static int same_match(const struct ethtool_rx_flow_spec *a, const struct ethtool_rx_flow_spec *b)
{
	return flow_of(a) == flow_of(b) && !memcmp(&a->h_u, &b->h_u, sizeof a->h_u) &&
	       !memcmp(&a->m_u, &b->m_u, sizeof a->m_u) &&
	       user_def(&a->h_ext) == user_def(&b->h_ext) && a->h_ext.vlan_tci == b->h_ext.vlan_tci;
}

static int check_target(struct nic *n, const struct ethtool_rx_flow_spec *fs, int cloud)
{
	uint32_t vf = fs->ring_cookie >> 32 & 0xff, queue = fs->ring_cookie & 0xffffffff;

	if (fs->ring_cookie == RX_CLS_FLOW_DISC)
		return cloud ? EOPNOTSUPP : 0;
	if (vf > n->vfs)
		return EINVAL;
	if (cloud && vf && queue == ANY_QUEUE)
		return n->l4mode ? 0 : EINVAL;
	return queue < VF_QUEUES ? 0 : EINVAL;
}

static int check_fdir(struct nic *n, const struct ethtool_rx_flow_spec *fs)
{
	switch (flow_of(fs)) {
	case TCP_V4_FLOW: case UDP_V4_FLOW: case SCTP_V4_FLOW: case IP_USER_FLOW:
	case TCP_V6_FLOW: case UDP_V6_FLOW: case SCTP_V6_FLOW: case IPV6_USER_FLOW:
		break;
	default:
		return EOPNOTSUPP;
	}
	if (fs->flow_type & FLOW_MAC_EXT || fs->location >= n->table)
		return EINVAL;
	if (!whole_masks(fs))
		return EOPNOTSUPP;
	for (uint32_t i = 0; i < n->count; i++) {
		struct rule *r = &n->rules[i];

		if (r->cloud || r->fs.location == fs->location)
			continue;
		if (same_match(&r->fs, fs))
			return EINVAL;
		if (flow_of(&r->fs) == flow_of(fs) && memcmp(&r->fs.m_u, &fs->m_u, sizeof fs->m_u))
			return EOPNOTSUPP;	/* another input set */
	}
	return check_target(n, fs, 0);
}

static int check_cloud(struct nic *n, const struct ethtool_rx_flow_spec *fs)
{
	uint32_t flow = flow_of(fs);

	if (flow != ETHER_FLOW && flow != IP_USER_FLOW && flow != UDP_V4_FLOW)
		return EINVAL;
	if (!whole_masks(fs) || user_def(&fs->h_ext) & ~(CLOUD | 1ULL << 62 | TUNNEL_AND_VNI))
		return EINVAL;
	if (flow == UDP_V4_FLOW && fs->m_u.udp_ip4_spec.pdst != 0xffff)
		return EINVAL;
	for (uint32_t i = 0; i < n->count; i++)
		if (n->rules[i].cloud && n->rules[i].fs.location != fs->location && same_match(&n->rules[i].fs, fs))
			return EINVAL;	/* the firmware's EEXIST */
	return check_target(n, fs, 1);
}

static int insert(struct nic *n, const struct ethtool_rx_flow_spec *asked)
{
	struct ethtool_rx_flow_spec fs = *asked;
	uint64_t user = fs.flow_type & FLOW_EXT ? user_def(&fs.h_ext) & user_def(&fs.m_ext) : 0;
	int cloud = n->out_of_tree && user & CLOUD;
	struct rule *old, *new;
	uint32_t vf;
	int code;

	n->inserts++;
	if (user & CLOUD)
		n->cloud_requests++;
	if (!n->ntuple)
		return fail(EOPNOTSUPP);
	if (!n->out_of_tree && user >> 32) {	/* bits it does not know; the rest are two flexible bytes */
		put_user_def(&fs.h_ext, user & 0xffffffff);
		put_user_def(&fs.m_ext, 0xffffffff);
	}
	code = cloud ? check_cloud(n, &fs) : check_fdir(n, &fs);
	if (code)
		return fail(code);
	old = at(n, fs.location);
	if (old) {
		forget(n, old);
		if (n->gap_us)
			usleep(n->gap_us);
	}
	if (n->refuse_next) {
		n->refuse_next--;
		return fail(EIO);
	}
	if (n->count >= MAX_RULES || (!cloud && n->count >= n->table))
		return fail(ENOSPC);
	new = &n->rules[n->count++];
	memset(new, 0, sizeof *new);
	new->fs = fs;
	new->cloud = cloud;
	new->effective = 1;
	if (n->drop_next) {
		n->drop_next--;
		new->effective = 0;
	}
	vf = fs.ring_cookie >> 32 & 0xff;
	if (vf && fs.ring_cookie != RX_CLS_FLOW_DISC)
		new->generation = n->generation[vf - 1];
	if (cloud && flow_of(&fs) == UDP_V4_FLOW) {
		if (n->l4mode) {
			for (uint32_t i = 0; i < n->count; i++)
				if (n->rules[i].cloud && flow_of(&n->rules[i].fs) == ETHER_FLOW)
					n->rules[i].effective = 0;	/* the other family, until a core reset */
		} else {
			new->effective = 0;	/* it became a filter for the address 0.0.0.0 */
		}
	}
	return 0;
}

static void give_back(struct nic *n, const struct rule *r, struct ethtool_rx_flow_spec *out)
{
	uint32_t location = r->fs.location, vf = r->fs.ring_cookie >> 32 & 0xff;
	uint64_t user = user_def(&r->fs.h_ext), mask = CLOUD;

	*out = r->fs;
	if (vf && r->fs.ring_cookie != RX_CLS_FLOW_DISC && r->generation != n->generation[vf - 1])
		out->ring_cookie &= 0xffffffff;	/* its target is nobody the driver knows */
	if (!r->cloud)
		return;
	if (user & 0xffffff)
		mask |= 0xffffff;
	if (user >> 24 & 0xff)
		mask |= 0xff000000;
	memset(&out->m_ext, 0, sizeof out->m_ext);
	put_user_def(&out->m_ext, mask);
	put_user_def(&out->h_ext, user & mask);
	out->flow_type |= FLOW_EXT;
	if (flow_of(&r->fs) != ETHER_FLOW) {
		memset(&out->m_u, 0, sizeof out->m_u);
		if (flow_of(&r->fs) == UDP_V4_FLOW && !n->l4mode) {
			memset(&out->h_u, 0, sizeof out->h_u);
			out->flow_type = IP_USER_FLOW | FLOW_EXT;
		}
		out->h_u.usr_ip4_spec.ip_ver = ETH_RX_NFC_IP4;
	}
	out->location = location;
}

static int play(struct nic *n, void *data)
{
	uint32_t command = *(uint32_t *)data;
	struct ethtool_rxnfc *r = data;
	struct ethtool_drvinfo *info = data;
	struct rule *found;

	switch (command) {
	case ETHTOOL_GDRVINFO:
		memcpy(info->driver, n->driver, sizeof info->driver);
		memcpy(info->version, n->version, sizeof info->version);
		memcpy(info->fw_version, n->firmware, sizeof info->fw_version);
		memcpy(info->bus_info, n->bus, sizeof info->bus_info);
		return 0;
	case ETHTOOL_GFLAGS:
		((struct ethtool_value *)data)->data = n->ntuple ? ETH_FLAG_NTUPLE : 0;
		return 0;
	case ETHTOOL_GRXRINGS:
		r->data = VF_QUEUES;
		return 0;
	case ETHTOOL_GRXCLSRLCNT:
		r->rule_cnt = n->count;
		r->data = n->table;
		return 0;
	case ETHTOOL_GRXCLSRLALL:
		if (r->rule_cnt < n->count)
			return fail(EMSGSIZE);
		r->data = n->table;
		r->rule_cnt = n->count;
		for (uint32_t i = 0; i < n->count; i++)
			r->rule_locs[i] = n->rules[i].fs.location;
		return 0;
	case ETHTOOL_GRXCLSRULE:
		found = at(n, r->fs.location);
		if (!found)
			return fail(ENOENT);
		r->data = n->table;
		give_back(n, found, &r->fs);
		return 0;
	case ETHTOOL_SRXCLSRLINS:
		return insert(n, &r->fs);
	case ETHTOOL_SRXCLSRLDEL:
		n->deletes++;
		found = at(n, r->fs.location);
		if (!found)
			return fail(ENOENT);
		forget(n, found);
		return 0;
	}
	return fail(EOPNOTSUPP);
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*real)(int, unsigned long, ...);
	struct ifreq *ifr;
	struct nic *nic;
	uint32_t command;
	va_list list;
	void *arg;

	va_start(list, request);
	arg = va_arg(list, void *);
	va_end(list);
	if (!real)
		real = dlsym(RTLD_NEXT, "ioctl");
	if (request != SIOCETHTOOL)
		return real(fd, request, arg);
	ifr = arg;
	command = *(uint32_t *)ifr->ifr_data;
	if (command >= ETHTOOL_GRXCLSRLCNT && command <= ETHTOOL_SRXCLSRLINS)
		record(ifr->ifr_name, ifr->ifr_data);
	nic = attach();
	return nic ? play(nic, ifr->ifr_data) : real(fd, request, arg);
}
