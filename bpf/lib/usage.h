/* What goes through services. A packet costs two additions in its flow's entry, which is at hand; the sums move to `usage`
 * when the flow is refreshed or ends, at most once a second. A connection is counted when it is answered or ends, for then
 * the sums move anyway. They are no atomic operations: a packet that another processor counts at the same instant may be
 * missed. What a silent flow holds, the agent adds when it sweeps the flow. */

static __always_inline void count(struct flow *f, const struct packet *p)
{
	if (!f->service)
		return;
	f->packets++;
	f->bytes += p->l4 + p->l4_length;
}

/* Move what a flow counted, that `key` found, to `usage`, and a connection with it. */
static __always_inline void flush(struct flow *f, const struct tuple *key, bool connection)
{
	struct usage more = { .connections = connection, .packets = f->packets, .bytes = f->bytes };
	struct member member = { .set = f->service };
	bool back = f->flags & FLOW_REPLY;
	if (!f->service || !(more.packets || connection))
		return;
	f->packets = 0;
	f->bytes = 0;
	member.backend.address = back ? key->source : f->to.destination;
	member.backend.port = back ? key->source_port : f->to.destination_port;
	struct usage *sum = usage.lookup(&member);
	if (!sum) {
		usage.update(&member, &more);
		return;
	}
	sum->connections += more.connections;
	sum->packets += more.packets;
	sum->bytes += more.bytes;
}

/* The same of a flow that is removed; one that was never answered was a connection, too. */
static __always_inline void flush_last(struct flow *f, const struct tuple *key)
{
	flush(f, key, f->state == FLOW_NEW && !(f->flags & FLOW_REPLY));
}
