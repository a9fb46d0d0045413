/* What the datapath and the control plane share: mirror of ebpfnet/abi.py.
 *
 * tests/unit/test_abi.py compiles this file with a plain C compiler and compares every size, offset and
 * enumerator with Python, both ways; so it includes nothing but integer types.
 * Enumerators are numbered explicitly, appended only, and a hole is never used again.
 */
#ifndef EBPFNET_ABI_H
#define EBPFNET_ABI_H

#include <linux/types.h>

#define LAYOUT_VERSION 1

/* A flow that is idle for so long is over. The datapath does not use it any more, the agent sweeps it. */
#define TIMEOUT_TCP_NEW_S 60
#define TIMEOUT_TCP_ESTABLISHED_S 21600
#define TIMEOUT_TCP_CLOSING_S 10
#define TIMEOUT_DATAGRAM_NEW_S 30
#define TIMEOUT_DATAGRAM_ESTABLISHED_S 120

/* IPv6, or IPv4 as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2): one table and one code path serve both families. */
struct address {
	__be32 word[4];
};

/* What a client connects to. Key of `services`. */
struct frontend {
	struct address address;
	__be16 port;
	__u8 protocol; /* IPPROTO_* */
	__u8 pad;
};

/* Value of `services`: backends are slots (id, generation, 0 .. count-1). count 0 means refuse. */
struct service {
	__u64 id; /* hash of NAMESPACE/NAME:PORT and family; key of `names` */
	__u32 generation;
	__u32 count;
};

/* Key of `slots`. */
struct slot {
	__u64 service;
	__u32 generation;
	__u32 index;
};

/* Value of `slots`. */
struct backend {
	struct address address;
	__be16 port;
	__u16 pad;
};

/* The host-side end of a pod's wire. ifindex 0: not a pod of this node. */
struct wire {
	__u32 ifindex;
	__u8 mac[6]; /* of the pod's end */
	/* 0: made for us. Else another CNI plugin's: 1 routed, above that a port of the bridge with this ifindex. */
	__u16 segment;
};

/* Value of `pods`, keyed by struct address: one entry for each address of each pod of this node. */
struct pod {
	struct wire wire;
	__u32 pad;
	__u64 id; /* hash of NAMESPACE/NAME; key of `names` */
};

/* One direction of one connection. ICMP echo: both ports are the identifier. Key of `flows`. */
struct tuple {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};

enum flow_state {
	FLOW_NEW = 0,	      /* no reply seen: TCP SYN sent, first datagrams */
	FLOW_ESTABLISHED = 1, /* packets seen both ways */
	FLOW_CLOSING = 2,     /* TCP FIN or RST seen */
	FLOW_STATE_MAX = 3,
};

enum flow_flag {
	FLOW_REPLY = 1,	 /* this entry matches the answers */
	FLOW_NAT = 2,	 /* `to` differs from the key */
	FLOW_BESIDE = 4, /* opened on another plugin's wire: both directions are translated there, and nowhere else */
};

/* Value of `flows`. The other direction's key is reverse(to), and its `to` is reverse(key). */
struct flow {
	struct tuple to;  /* the packet's tuple when we are done with it */
	__u64 seen_ns;	  /* CLOCK_MONOTONIC; refreshed at most once a second, both directions together */
	__u64 service;	  /* id of the service it came through, or 0 */
	struct wire from; /* where packets of this direction must come in */
	struct wire deliver;
	__u8 state;	/* enum flow_state */
	__u8 flags;	/* enum flow_flag */
	__u8 tcp_flags; /* union of TCP flags seen in this direction */
	__u8 pad[5];
};

/* Key of `fragments`; the value is struct ports of the first fragment. */
struct fragment {
	struct address source;
	struct address destination;
	__u32 id; /* network order; IPv4: 16 bits */
	__u8 protocol;
	__u8 pad[3];
};

struct ports {
	__be16 source;
	__be16 destination;
};

/* Value of `names`, keyed by a __u64 id: NUL-padded text for people. */
struct name {
	char text[384];
};

enum hook {
	HOOK_FROM_POD = 0,
	HOOK_TO_POD = 1,
	HOOK_FROM_NETWORK = 2,
	HOOK_TO_NETWORK = 3,
	HOOK_MAX = 4,
};

/* What became of a packet. Index of `forwards` is hook * OUTCOME_MAX + outcome; also left in skb->cb[0]. */
enum outcome {
	OUTCOME_STACK = 0,   /* to the host's stack, or on to the device that the stack chose */
	OUTCOME_POD = 1,     /* into a pod of this node; its ifindex in skb->cb[2] */
	OUTCOME_NETWORK = 2, /* to another node, past the stack; ifindex in skb->cb[2] */
	OUTCOME_REJECT = 3,  /* answered with RST or ICMP unreachable; reason in skb->cb[1] */
	OUTCOME_DROP = 4,    /* reason in skb->cb[1] */
	OUTCOME_MAX = 5,
};

/* Index of `drops` is hook * DROP_MAX + reason. */
enum drop_reason {
	DROP_NONE = 0,
	DROP_TRUNCATED = 1,		/* a header reaches beyond the packet's end */
	DROP_MALFORMED = 2,		/* a header contradicts itself */
	DROP_SPOOFED_ADDRESS = 3,	/* the source address is not the sender's */
	DROP_SPOOFED_MAC = 4,		/* the source MAC is not the sender's */
	DROP_UNSUPPORTED_ETHERTYPE = 5, /* neither IPv4, IPv6 nor ARP */
	DROP_UNSUPPORTED_PROTOCOL = 6,	/* neither TCP, UDP, SCTP nor ICMP of the address family */
	DROP_UNSUPPORTED_ICMP = 7,	/* ICMP that is neither echo nor an error */
	DROP_UNSUPPORTED_EXTENSION = 8, /* more IPv6 extension headers than we follow, or a routing header */
	DROP_FRAGMENT_UNKNOWN = 9,	/* a later fragment whose first was not seen */
	DROP_FLOW_UNKNOWN = 10,		/* an ICMP error about no flow of ours */
	DROP_FLOW_TABLE = 11,		/* `flows` refused the entry */
	DROP_NO_ENDPOINTS = 12,		/* the service has no ready endpoint (the packet is rejected) */
	DROP_NO_SLOT = 13,		/* `services` led to a slot that is not there: a bug, never normal */
	DROP_NO_SOURCE_PORT = 14,	/* every source port tried for a hairpin is taken */
	DROP_REWRITE = 15,		/* a kernel helper refused to change the packet */
	DROP_MAX = 16,
};

/* Counter of `forwards` and `drops` (per CPU). */
struct counter {
	__u64 packets;
	__u64 bytes;
};

#define DROP_SAMPLES 1024 /* `drop_samples` keeps the last so many; slot = sequence % DROP_SAMPLES */

/* Value of `drop_samples`. sequence counts from 1 and is written last. */
struct drop_sample {
	__u64 sequence;
	__u64 seen_ns;	    /* CLOCK_MONOTONIC */
	struct tuple tuple; /* as far as it was parsed; else zero */
	__u32 ifindex;
	__u32 length; /* bytes of the packet, Ethernet header included */
	__u8 hook;    /* enum hook */
	__u8 reason;  /* enum drop_reason */
	__u8 pad[6];
};

#endif
