/* Refusing at once: the packet becomes its own answer and goes back to where it came from. TCP gets a reset
 * (RFC 9293 §3.5.2), everything else port unreachable (RFC 1122 §3.2.2.1, RFC 4443 §3.1), SCTP too: so do kube-proxy's
 * rejects (pkg/proxy/nftables/proxier.go, chain reject-chain). */

#define TTL_DEFAULT 64
#define QUOTED_TRANSPORT 8 /* bytes of the transport header in an error (RFC 792) */
#define OPTIONS_MAX 40	   /* bytes of IPv4 options or IPv6 extension headers that a refused packet may have */
#define OPTIONS_ROOM 63	   /* the verifier knows no better bound */

struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 rest;
};

struct reset {
	__be16 source_port;
	__be16 destination_port;
	__be32 sequence;
	__be32 acknowledged;
	__be16 flags; /* header length in words, then flags */
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

struct pseudo {
	struct address source;
	struct address destination;
	__be32 length;
	__be32 protocol;
};

static __always_inline __sum16 csum_finish(__s64 sum)
{
	__u32 folded = ((__u32)sum & 0xffff) + ((__u32)sum >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* Checksum of the pseudo header; the prefixes of mapped IPv4 addresses add up to 2 * 0xffff, that is to nothing. */
static __always_inline __u32 pseudo_sum(const struct tuple *t, __u32 length, __u8 protocol)
{
	struct pseudo pseudo = { t->source, t->destination, bpf_htonl(length), bpf_htonl(protocol) };
	return bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
}

/* Cut or grow a packet of which nothing is kept. bpf_skb_change_tail refuses what came in a second header and was never on a
 * wire, or is a train: nobody takes back that its headers are two (skb->encapsulation). */
static __always_inline int resize(struct __sk_buff *skb, const struct packet *p, __u32 length)
{
	int error = bpf_skb_change_tail(skb, length, 0);
	if (error && p->unwrapped) {
		__s32 more = length - skb->len;
		error = bpf_skb_adjust_room(skb, more, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	}
	return error;
}

/* Write Ethernet and IP headers of an answer with `length` bytes of payload, cutting or growing the packet to it. */
static __always_inline int answer_headers(struct __sk_buff *skb, const struct packet *p, const struct tuple *answer,
					  __u32 length, __u8 protocol)
{
	__u32 header = p->ipv6 ? 40 : 20;
	__u8 macs[12];
	if (bpf_skb_load_bytes(skb, 0, macs, 12) || resize(skb, p, ETHERNET_LENGTH + header + length))
		return -DROP_REWRITE;
	if (bpf_skb_store_bytes(skb, 0, macs + 6, 6, 0) || bpf_skb_store_bytes(skb, 6, macs, 6, 0))
		return -DROP_REWRITE;
	if (p->ipv6) {
		struct ipv6hdr ip = { .version = 6, .nexthdr = protocol, .hop_limit = TTL_DEFAULT };
		ip.payload_len = bpf_htons(length);
		__builtin_memcpy(&ip.saddr, &answer->source, 32);
		return bpf_skb_store_bytes(skb, ETHERNET_LENGTH, &ip, sizeof(ip), 0) ? -DROP_REWRITE : 0;
	}
	struct iphdr ip = { .version = 4, .ihl = 5, .ttl = TTL_DEFAULT, .protocol = protocol };
	ip.tot_len = bpf_htons(header + length);
	ip.saddr = answer->source.word[3];
	ip.daddr = answer->destination.word[3];
	ip.check = csum_finish(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	return bpf_skb_store_bytes(skb, ETHERNET_LENGTH, &ip, sizeof(ip), 0) ? -DROP_REWRITE : 0;
}

/* Bytes between the fixed IP header and the transport's, a multiple of 4. More than OPTIONS_MAX: not to be answered. */
static __always_inline __u64 options_of(const struct packet *p)
{
	return p->l4 - ETHERNET_LENGTH - (p->ipv6 ? 40 : 20);
}

/* Our header is longer than it must be by as much as the packet has options. Those go, and with CHECKSUM_PARTIAL the
 * kernel does not cut a packet before the place where its checksum was; zeros end a header's options. */
static __always_inline int reset_connection(struct __sk_buff *skb, const struct packet *p, const struct tuple *answer)
{
	struct reset theirs;
	struct {
		struct reset tcp;
		__u8 padding[OPTIONS_ROOM + 1];
	} ours = {};
	__u64 padding = options_of(p);
	asm volatile("%0 &= 63" : "+r"(padding));
	__u32 header = sizeof(ours.tcp) + padding;
	__u16 flags = header / 4 << 12 | TCP_RST;
	if (bpf_skb_load_bytes(skb, p->l4, &theirs, sizeof(theirs)))
		return -DROP_TRUNCATED;
	ours.tcp.source_port = answer->source_port;
	ours.tcp.destination_port = answer->destination_port;
	if (p->tcp_flags & TCP_ACK) {
		ours.tcp.sequence = theirs.acknowledged;
	} else {
		__u32 length = p->l4_length - (bpf_ntohs(theirs.flags) >> 12) * 4;
		length += !!(p->tcp_flags & TCP_SYN) + !!(p->tcp_flags & TCP_FIN);
		ours.tcp.acknowledged = bpf_htonl(bpf_ntohl(theirs.sequence) + length);
		flags |= TCP_ACK;
	}
	ours.tcp.flags = bpf_htons(flags);
	__u32 sum = pseudo_sum(answer, header, IPPROTO_TCP);
	ours.tcp.check = csum_finish(bpf_csum_diff(NULL, 0, (__be32 *)&ours, sizeof(ours), sum));
	int error = answer_headers(skb, p, answer, header, IPPROTO_TCP);
	if (error)
		return error;
	__u32 offset = ETHERNET_LENGTH + (p->ipv6 ? 40 : 20);
	return bpf_skb_store_bytes(skb, offset, &ours, sizeof(ours.tcp) + padding, 0) ? -DROP_REWRITE : 0;
}

/* What the error says: port unreachable, or why a packet can't go on. */
static __always_inline void describe(struct icmp_header *icmp, bool ipv6, int why, __u32 mtu)
{
	icmp->type = ipv6 ? 1 : 3;
	icmp->code = ipv6 ? 4 : 3;
	if (why == -DROP_TIME_EXCEEDED) { /* in transit */
		icmp->type = ipv6 ? 3 : 11;
		icmp->code = 0;
	} else if (why == -DROP_TOO_BIG) { /* RFC 1191 §4, RFC 4443 §3.2 */
		icmp->type = ipv6 ? 2 : 3;
		icmp->code = ipv6 ? 0 : 4;
		icmp->rest = bpf_htonl(mtu);
	}
}

static __always_inline int unreachable(struct __sk_buff *skb, const struct packet *p, const struct tuple *answer,
				       int why, __u32 mtu)
{
	struct {
		struct icmp_header icmp;
		__u8 quoted[40 + OPTIONS_ROOM + 1 + QUOTED_TRANSPORT];
	} body = {};
	__u64 options = options_of(p);
	asm volatile("%0 &= 63" : "+r"(options));
	__u32 quoted = (p->ipv6 ? 40 : 20) + options + QUOTED_TRANSPORT;
	__u32 length = sizeof(struct icmp_header) + quoted;
	__s64 sum = 0;

	describe(&body.icmp, p->ipv6, why, mtu);
	if (bpf_skb_load_bytes(skb, ETHERNET_LENGTH, body.quoted, quoted))
		return -DROP_TRUNCATED;
	if (p->ipv6)
		sum = pseudo_sum(answer, length, IPPROTO_ICMPV6);
	/* What is not quoted is zero and adds nothing. */
	body.icmp.check = csum_finish(bpf_csum_diff(NULL, 0, (__be32 *)&body, sizeof(body), sum));
	int error = answer_headers(skb, p, answer, length, p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
	if (error)
		return error;
	return bpf_skb_store_bytes(skb, ETHERNET_LENGTH + (p->ipv6 ? 40 : 20), &body, length, 0) ? -DROP_REWRITE : 0;
}

/* What a client is told at once; every other error is silence. */
static __always_inline bool refused(int error)
{
	return error == -DROP_NO_ENDPOINTS || error == -DROP_UNDEFINED_PORT || error == -DROP_BACKEND_GONE ||
	       error == -DROP_TIME_EXCEEDED || error == -DROP_TOO_BIG;
}

/* Send an answer, which has the MACs of its question the other way round, where that came from: into a pod, to the
 * network, or to this node's own process, in at the interface that its question was to leave by. What another node sent on
 * came from elsewhere: the kernel finds the way. */
static __always_inline int send_back(struct __sk_buff *skb, const struct packet *p, __u32 hook)
{
	if (hook == HOOK_FROM_NETWORK && p->unwrapped)
		return redirect_neighbour(skb->ingress_ifindex, NULL, 0, 0);
	if (hook == HOOK_FROM_POD)
		return bpf_redirect_peer(skb->ingress_ifindex, 0);
	if (hook == HOOK_FROM_NETWORK)
		return bpf_redirect(skb->ingress_ifindex, 0);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* Answer a packet with a refusal or, about one that can't go on, an error; `mtu` of the path where it is too big. At
 * HOOK_TO_POD its sender is not known any more: that one hears nothing, and what it sends next goes to the pod as it is. */
static __always_inline int answer_error(struct __sk_buff *skb, const struct packet *p, __u32 hook, int why, __u32 mtu)
{
	struct tuple answer;
	int error;
	/* One refusal for a whole datagram, and a reset, or an SCTP ABORT, is never answered. */
	if (p->fragment == FRAGMENT_LATER || (p->tcp_flags & TCP_RST) || options_of(p) > OPTIONS_MAX ||
	    hook == HOOK_TO_POD)
		return drop(skb, hook, why, &p->tuple);
	reverse(&answer, &p->tuple);
	if (p->tuple.protocol == IPPROTO_TCP && why != -DROP_TIME_EXCEEDED && why != -DROP_TOO_BIG)
		error = reset_connection(skb, p, &answer);
	else
		error = unreachable(skb, p, &answer, why, mtu);
	if (error)
		return drop(skb, hook, error, &p->tuple);
	skb->cb[1] = -why;
	__u32 ifindex = hook == HOOK_FROM_POD || hook == HOOK_FROM_NETWORK ? skb->ingress_ifindex : skb->ifindex;
	return finish(skb, hook, OUTCOME_REJECT, ifindex, send_back(skb, p, hook));
}

/* Answer a packet with a refusal. */
static __always_inline int reject(struct __sk_buff *skb, const struct packet *p, __u32 hook, int why)
{
	return answer_error(skb, p, hook, why, 0);
}
