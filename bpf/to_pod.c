/* tc egress of a pod's host-side veth: what reaches a pod through the host's stack. Whatever from_pod or from_network
 * delivered went past this hook. */

/* The flow of a packet that was translated on its way here: a question of this node's own to a service (lib/host.h), or one
 * from another plugin's wire. The answers' key is taken then. A connection that is closing says nothing about a new one from
 * the same port. */
static __always_inline struct flow *translated(const struct packet *p, struct tuple *key, __u64 now)
{
	reverse(key, &p->tuple);
	struct flow *f = flows.lookup(key);
	if (!f || !(f->flags & FLOW_REPLY) || flow_over(f, p->tuple.protocol, now))
		return NULL;
	return f->state == FLOW_CLOSING && asks_to_connect(p) ? NULL : f;
}

/* A connection that begins here: this node's own, or one that came in past from_network. Not remembered yet. NULL with
 * *error 0: to no pod that we know. */
static __always_inline struct flow *open_to_pod(struct __sk_buff *skb, const struct packet *p, int *error)
{
	struct address address = p->tuple.source;
	struct flow *f = blank_flow(SCRATCH_FORWARD);
	struct pod *pod = pods.lookup(&address);
	*error = 0;
	if (pod && !pod->wire.segment && pod->wire.ifindex != skb->ingress_ifindex) {
		*error = -DROP_SPOOFED_ADDRESS;
		return NULL;
	}
	bool own = !skb->ingress_ifindex || (marks_of(&address) & MARK_OWN);
	address = p->tuple.destination;
	pod = pods.lookup(&address);
	if (!pod || !f)
		return NULL;
	f->to = p->tuple;
	f->deliver = pod->wire;
	f->flags = own ? FLOW_OWN : 0;
	return f;
}

/* About what the pod itself sent, untranslated: so deliver() lets go up what can't go on from here. NULL: no such flow. */
static __always_inline struct flow *sent_by_receiver(const struct packet *p, struct quote *q)
{
	return same_address(&p->tuple.destination, &q->tuple.source) ? flows.lookup(&q->tuple) : NULL;
}

/* Did a connection begin before the pod was there? It was not judged then as one with a pod, and no generation tells; a sweep
 * ends it soon (ebpfnet/reconcile/sweep.py), until then each packet is judged as the first one. What this node asks passes. */
static __always_inline bool is_older(const struct flow *f, bool answers_key)
{
	return !(answers_key ? f->from : f->deliver).ifindex && !(f->flags & (FLOW_HOST | FLOW_OWN));
}

int to_pod(struct __sk_buff *skb)
{
	struct packet p = {};
	struct flow *f = NULL;
	int error = parse(skb, &p);

	/* ARP, neighbour discovery, listener queries, redirects: the node as the pod's router */
	if (error == -DROP_UNSUPPORTED_ETHERTYPE || error == -DROP_UNSUPPORTED_ICMP ||
	    (!error && p.icmp == ICMP_KIND_NEIGHBOUR))
		return pass(skb, HOOK_TO_POD);
	if (!error && p.fragment != FRAGMENT_NO)
		error = follow_fragment(&p);
	if (error)
		return drop(skb, HOOK_TO_POD, error, &p.tuple);
	if (p.icmp == ICMP_KIND_ERROR) {
		struct quote q = {};
		f = find_error(skb, &p, &q, &error);
		bool as_sent = !f && error == -DROP_FLOW_UNKNOWN;
		if (as_sent)
			f = sent_by_receiver(&p, &q);
		if (f)
			error = consent_to_error(f);
		if (f && !error && !as_sent)
			error = translate_error(skb, &p, &q, f);
		return error ? drop(skb, HOOK_TO_POD, error, &p.tuple) : pass(skb, HOOK_TO_POD);
	}

	__u64 now = bpf_ktime_get_coarse_ns();
	f = recall(&p, now);
	struct tuple key = p.tuple;
	bool fresh = false, done = false;
	if (!f) {
		f = translated(&p, &key, now);
		done = f;
	}
	if (!f) {
		f = open_to_pod(skb, &p, &error);
		key = p.tuple;
		fresh = true;
	}
	if (f && !error)
		error = consent(skb, HOOK_TO_POD, &p, &key, f, fresh || is_older(f, done));
	if (f && !error && fresh)
		f = remember(&p, f, now, &error);
	else if (f && !error && !done)
		error = track(f, &p, now);
	if (error) /* refused at once where its sender is known; here it is not any more */
		return drop(skb, HOOK_TO_POD, error, &p.tuple);
	if (!f || fresh || done)
		return pass(skb, HOOK_TO_POD);
	struct hop stack = {};
	return leave(skb, &p, HOOK_TO_POD, &f->to, f->flags & FLOW_NAT, &stack);
}
