/* Source NAT: the node stands in for a client outside whose backend is elsewhere, or the backend would answer past us.
 * The port comes from the range in `node`, which no local socket is given and no NodePort uses; still both are asked, for
 * a process may bind what it likes. */

/* Would an answer to us, of this tuple, find a socket of a local process? Sockets of SCTP can't be asked for. */
static __always_inline bool socket_waits(struct __sk_buff *skb, const struct tuple *answer, bool ipv6)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket = NULL;
	__u32 size = ipv6 ? sizeof(tuple.ipv6) : sizeof(tuple.ipv4);

	if (ipv6) {
		__builtin_memcpy(tuple.ipv6.saddr, &answer->source, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &answer->destination, 16);
		tuple.ipv6.sport = answer->source_port;
		tuple.ipv6.dport = answer->destination_port;
	} else {
		tuple.ipv4.saddr = answer->source.word[3];
		tuple.ipv4.daddr = answer->destination.word[3];
		tuple.ipv4.sport = answer->source_port;
		tuple.ipv4.dport = answer->destination_port;
	}
	if (answer->protocol == IPPROTO_TCP)
		socket = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (answer->protocol == IPPROTO_UDP)
		socket = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	bpf_sk_release(socket);
	return true;
}

/* Find a source port and claim the key of the answers with it. What held one until a moment ago is left alone: the
 * backend may still know the connection. Returns 0 or -DROP_NO_SOURCE_PORT. */
static __always_inline int claim_port(struct __sk_buff *skb, const struct packet *p, struct flow *f, __u64 now,
				      const struct node *us)
{
	struct tuple answer;
	struct flow *back = blank_flow(SCRATCH_BACK);
	__u32 first = us->first_port;
	__u32 ports = us->last_port >= first ? us->last_port - first + 1 : 0;

	if (!back)
		return -DROP_FLOW_TABLE;
	f->seen_ns = now;
	f->turn = p->turn;
	mirror(back, f, &p->tuple);
#pragma clang loop unroll(disable)
	for (int tried = 0; ports && tried < PORTS_TRIED; tried++) {
		__u32 port = first + (((__u64)bpf_get_prandom_u32() * ports) >> 32);
		f->to.source_port = bpf_htons(port);
		reverse(&answer, &f->to);
		struct flow *held = flows.lookup(&answer);
		if (held && !flow_over(held, answer.protocol, now))
			continue;
		if (socket_waits(skb, &answer, p->ipv6))
			continue;
		if (held)
			flows.delete(&answer);
		if (flows.insert(&answer, back) == 0) /* another CPU may be at it, too */
			return 0;
	}
	return -DROP_NO_SOURCE_PORT;
}

/* Put the node's address of a packet's family into *ours, which is all zero where it has none. */
static __always_inline void address_of_node(const struct node *us, bool ipv6, struct address *ours)
{
	*ours = us->ipv4;
	if (ipv6) {
		asm volatile("" ::: "memory"); /* or it becomes one access at a computed place, which has no bound */
		*ours = us->ipv6;
	}
}

static __always_inline bool is_nothing(const struct address *a)
{
	return !(a->word[0] | a->word[1] | a->word[3]);
}

/* Let the node stand in for the client of a new flow. remember() finds the answers' key claimed, for this flow. Returns
 * 0 or -DROP_*. */
static __always_inline int stand_in(struct __sk_buff *skb, const struct packet *p, struct flow *f, __u64 now)
{
	__u32 zero = 0;
	struct node *us = node.lookup(&zero);
	if (!us)
		return -DROP_NO_SOURCE_ADDRESS;
	address_of_node(us, p->ipv6, &f->to.source);
	if (is_nothing(&f->to.source))
		return -DROP_NO_SOURCE_ADDRESS;
	return claim_port(skb, p, f, now, us);
}
