/* What the datapath and the control plane share: mirror of ebpfnet/abi.py.
 *
 * tests/unit/test_abi.py compiles this file with a plain C compiler and compares every size, offset and
 * enumerator with Python, both ways; so it includes nothing but integer types.
 * Enumerators are numbered explicitly, appended only, and a hole is never used again.
 */
#ifndef EBPFNET_ABI_H
#define EBPFNET_ABI_H

#include <linux/types.h>

#define LAYOUT_VERSION 3

/* A flow that is idle for so long is over. The datapath does not use it any more, the agent sweeps it. */
#define TIMEOUT_TCP_NEW_S 60
#define TIMEOUT_TCP_ESTABLISHED_S 21600
#define TIMEOUT_TCP_CLOSING_S 10
#define TIMEOUT_TCP_HALF_CLOSED_S 240 /* RFC 5382 §5, REQ-5 */
#define TIMEOUT_DATAGRAM_NEW_S 30
#define TIMEOUT_DATAGRAM_ESTABLISHED_S 120

/* IPv6, or IPv4 as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2): one table and one code path serve both families. */
struct address {
	__be32 word[4];
};

/* What a client connects to. Key of `services`. A NodePort has the address 0.0.0.0 or ::, and is reached at every
 * address that is marked for it. Port and protocol 0: no frontend but a mark, what an address is (enum mark). */
struct frontend {
	struct address address;
	__be16 port;
	__u8 protocol; /* IPPROTO_* */
	__u8 pad;
};

enum mark {
	MARK_OWN = 1,	     /* an address of this node */
	MARK_NODEPORTS = 2,  /* at which NodePorts are served */
	MARK_CLUSTER_IP = 4, /* of a service: a port of it that is no frontend is refused */
	MARK_BALANCER = 8,   /* of a frontend, for people: the address is a load balancer's, not an external IP */
	MARK_FOREIGN = 16,   /* of a service that another proxy serves: none of our business */
	MARK_DIRECT = 32,    /* of a frontend: what is for a backend elsewhere goes there as it came, wrapped */
	MARK_TAKEN = 64,     /* of a frontend: what other nodes wrap is taken */
	MARK_NODE = 128,     /* of a Node object, this node's or another's; where a service is direct */
};

/* Value of `services`. The sets are often one and the same. */
struct service {
	__u64 inside;	  /* endpoint set for clients in the cluster: pods, and this node */
	__u64 outside;	  /* endpoint set for everybody else */
	__u64 ranges;	  /* hash of NAMESPACE/NAME: only clients of its `ranges` are served; 0: all are */
	__u32 affinity_s; /* seconds that a client stays with its backend; 0: every connection chooses */
	__u16 marks;	  /* enum mark; of a frontend MARK_BALANCER, MARK_DIRECT and MARK_TAKEN at most */
	__u16 pad;
};

enum set_flag {
	SET_ELSEWHERE = 1,  /* without backends here, but not in the cluster: dropped, not refused */
	SET_CONSISTENT = 2, /* the slots are a Maglev table: indexed by the hash of a connection, not at random */
	SET_WEIGHTED = 4,   /* backends have as many slots as their weight says: only for who counts backends */
};

/* Value of `sets`, keyed by a __u64 id, hash of NAMESPACE/NAME:PORT, family and locality; key of `names`, too. Backends
 * are slots (id, generation, 0 .. count-1). count 0 means refuse. */
struct set {
	__u32 generation;
	__u32 count;
	__u32 flags; /* enum set_flag */
	__u32 pad;
};

/* Key of `slots`. */
struct slot {
	__u64 set;
	__u32 generation;
	__u32 index;
};

/* Value of `slots`. */
struct backend {
	struct address address;
	__be16 port;
	__u16 pad;
};

/* Key of `members`: a backend that is in a set now. Kept for sets whose clients stay, and for
 * those of MARK_TAKEN; value __u32 1. Also key of `usage`. */
struct member {
	__u64 set;
	struct backend backend;
	__u32 pad;
};

/* Key of `affinity`. */
struct client {
	__u64 set;
	struct address address;
};

/* Value of `affinity`: good for the service's affinity_s since `seen_ns`, and while the backend is a member. */
struct affinity {
	__u64 seen_ns; /* CLOCK_MONOTONIC, of the client's last new connection */
	struct backend backend;
	__u32 pad;
};

/* Key of `ranges` (LPM trie): clients that a service is for; value __u32 1. */
struct range {
	__u32 prefix_length; /* bits: 64 of the id, 96 more of mapped IPv4, and the block's own */
	__u32 service[2];    /* id, in memory as a __u64 is */
	struct address address;
};

/* Key of `blocks` (LPM trie); value __u32 enum block_kind. */
struct block {
	__u32 prefix_length; /* bits, 96 more for IPv4 */
	struct address address;
};

enum block_kind {
	BLOCK_PODS = 1,	    /* clients in the cluster have these addresses */
	BLOCK_SERVICES = 2, /* cluster IPs come from here: one that no service has is dropped */
};

/* The only value of `node`. */
struct node {
	struct address ipv4; /* what stands for a client whose answers must come back here; zero: none */
	struct address ipv6;
	__u16 first_port; /* with a port of this range, host order, which no local socket and no NodePort uses */
	__u16 last_port;
	__u32 pad;
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
	__u64 id;    /* hash of NAMESPACE/NAME; key of `names` */
	__u64 group; /* what policies say of it: with whom it shares all of them; 0: no policy selects it */
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
	FLOW_HALF_CLOSED = 3, /* FLOW_DIRECT: FIN of the client seen, and the backend's never is */
	FLOW_STATE_MAX = 4,
};

enum flow_flag {
	FLOW_REPLY = 1,	  /* this entry matches the answers */
	FLOW_NAT = 2,	  /* `to` differs from the key */
	FLOW_BESIDE = 4,  /* opened on another plugin's wire: both directions are translated there, and nowhere else */
	FLOW_HOST = 8,	  /* asked by this node itself: answers go in at the interface that the question left by */
	FLOW_GONE = 16,	  /* the backend is gone: the next packet ends the connection */
	FLOW_DIRECT = 32, /* sent on to the backend's node as it came; answers go past us, and have no entry */
	FLOW_OWN = 64,	  /* asked by this node itself, of a pod and through no service: no policy is asked */
};

/* Value of `flows`. The other direction's key is reverse(to), and its `to` is reverse(key). */
struct flow {
	struct tuple to;  /* the packet's tuple when we are done with it */
	__u64 seen_ns;	  /* CLOCK_MONOTONIC; refreshed at most once a second, both directions together */
	__u64 service;	  /* id of the endpoint set it came through, or 0 */
	__u64 bytes;	  /* of this direction, not yet added to `usage` */
	struct wire from; /* where packets of this direction must come in */
	struct wire deliver;
	__u8 state;	  /* enum flow_state */
	__u8 flags;	  /* enum flow_flag */
	__u8 tcp_flags;	  /* union of TCP flags seen in this direction */
	__u8 turn;	  /* low bits of the `turn` in which `departed` was asked last */
	__u32 packets;	  /* like bytes */
	__u32 generation; /* what generation_of() said before it was judged last */
	__u32 pad2;
	__u64 egress_rule;  /* id of what lets its client's node send it; 0: nothing was asked */
	__u64 ingress_rule; /* id of what lets its server's node take it; the same in both entries */
};

/* Value of `departed`, keyed by struct member: backends that left since the agent last looked at all flows; with an
 * all-zero backend the endpoint set itself. `turn`, a __u32, counts what was put there: a flow of another turn asks. */
enum departure {
	DEPARTED_UNFIT = 1, /* does not serve any more: datagrams, and what nobody has answered, choose anew */
	DEPARTED_GONE = 2,  /* in no slice any more: what is established ends, too */
};

enum direction {
	DIRECTION_INGRESS = 0,
	DIRECTION_EGRESS = 1,
};

enum verdict {
	VERDICT_DENY = 0,
	VERDICT_ALLOW = 1,
	VERDICT_AUDIT = 2, /* passes; a policy that is only audited would drop it */
};

enum rule_flag {
	RULE_GRACEFUL = 1, /* of a deny: connections that are known are left alone */
};

/* Key of `rules`: what pods of a group may have to do with peers of a class. Class 0 is everybody who has no entry of
 * his own here; every group has that entry for both directions, so a group without one is a mistake: drop. */
struct rule_key {
	__u64 group;
	__u32 peers;	/* class: value of `peers` or `peer_blocks` */
	__u8 direction; /* enum direction, from the pod's side */
	__u8 pad[3];
};

/* Value of `rules`: for every port and protocol (ICMP too), unless `ports` knows better. Value of `rule_ports`: there
 * `ports` and `lengths` are 0. */
struct rule {
	__u64 id;      /* of what decided; key of `names` and `rule_hits` */
	__u64 ports;   /* which entries of `rule_ports` are meant; 0: none */
	__u32 lengths; /* bit n: some of them are prefixes of n bits (0..16) */
	__u8 verdict;  /* enum verdict */
	__u8 flags;    /* enum rule_flag */
	__u16 pad;
};

/* Key of `rule_ports`: a range of ports of one protocol, as the prefix of a port number. The ranges of one `ports` do not
 * overlap, and never change: what is different has another number. */
struct port_range {
	__u64 ports;
	__be16 port;   /* bits beyond the prefix are 0 */
	__u8 length;   /* bits of the prefix; 0: every port */
	__u8 protocol; /* IPPROTO_* */
	__u32 pad;
};

/* Value of `rule_hits` (per CPU), keyed by a __u64 rule id: connections, or packets without one, that it decided. */
struct hits {
	__u64 allowed;
	__u64 denied;
	__u64 audited;
};

/* `generations`: of a pod's verdicts; slot = ifindex % GENERATIONS, pods may share one; odd while something changes. The
 * slot of loopback, which is no pod's, changes with each of them. */
#define GENERATIONS 1024
#define GENERATION_OF_ALL 1

#define ROUTES 256 /* places in `routes` */

/* Value of `routes` (per CPU): a next hop, as the kernel's routing table named it last for what shares this place. */
struct route {
	struct address source;
	struct address destination;
	__u64 asked_ns; /* CLOCK_MONOTONIC_COARSE: good until that ticks */
	__u32 from;	/* ifindex where the packet came in */
	__u32 ifindex;	/* of the way out */
	__u32 mtu;
	__u8 tos;
	__u8 hop_mac[6];
	__u8 own_mac[6]; /* of the way out */
	__u8 pad[7];
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

/* Key of `namespaces`: a network namespace whose sockets are ours to touch, and which family its address is of. The
 * value is struct address: the pod's; zero of its family: the node itself. */
struct netns {
	__u64 cookie; /* SO_NETNS_COOKIE; never used again until the machine restarts */
	__u32 ipv6;
	__u32 pad;
};

/* Value of `sockets`, keyed by a __u64, the socket's cookie: a TCP socket that connected to a service. */
struct socket {
	__u64 set;	       /* endpoint set that it got its backend from */
	__u64 namespace;       /* cookie */
	struct frontend asked; /* what its owner connected to */
	struct backend given;  /* what it is connected to; port 0: what it asked for, and packets get translated */
};

enum hook {
	HOOK_FROM_POD = 0,
	HOOK_TO_POD = 1,
	HOOK_FROM_NETWORK = 2,
	HOOK_TO_NETWORK = 3,
	HOOK_FROM_HOST = 4,
	HOOK_MAX = 5,
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
	DROP_NO_LOCAL_ENDPOINTS = 16,	/* the service's policy is Local, and its endpoints are on other nodes */
	DROP_UNDEFINED_PORT = 17,	/* a ClusterIP has no such port (the packet is rejected) */
	DROP_UNALLOCATED_ADDRESS = 18,	/* of a service CIDR, and no service has it */
	DROP_SOURCE_RANGE = 19,		/* the client is not in the service's loadBalancerSourceRanges */
	DROP_BACKEND_GONE = 20,		/* the connection's backend is gone (the packet is rejected) */
	DROP_NO_SOURCE_ADDRESS = 21,	/* the node has no address of this family to stand for the client */
	DROP_TIME_EXCEEDED = 22,	/* the time to live ends here (the packet is rejected) */
	DROP_TOO_BIG = 23,		/* for the path to the backend or client (the packet is rejected) */
	DROP_NO_ROUTE = 24,		/* no plain route leads to the backend's node */
	DROP_POLICY_EGRESS = 26, /* a policy of the sender's, or being isolated by some without a rule that allows it */
	DROP_POLICY_INGRESS = 27, /* the same of the receiver's */
	DROP_NO_RULES = 28,	  /* the pod's group has no rules: a bug, or a full table; never let through */
	DROP_AUDITED = 29,	  /* not dropped: an audited policy would have */
	DROP_MAX = 32,
};

/* Value of `usage` (per CPU), keyed by struct member: what went through a service to a backend, and back. */
struct usage {
	__u64 connections;
	__u64 packets;
	__u64 bytes;
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
	__u64 rule; /* id of what decided, for a policy's drop; else 0 */
};

#endif
