/* What goes through services. A packet costs two additions in its flow's entry, which is at hand; the sums move to `usage`
 * when the flow is refreshed or ends, at most once a second. A connection is counted when it is answered or ends, for then
 * the sums move anyway. They are no atomic operations: a packet that another processor counts at the same instant may be
 * missed. What is left in a flow that falls silent is of its last second, or of a connection that nobody answered: who
 * removes the flow has to add it. */

static __always_inline void count(struct flow *f, const struct packet *p)
{
	if (!f->service)
		return;
	f->packets++;
	f->bytes += p->l4 + p->l4_length;
}

/* The backend of a flow that `key` found. */
static __always_inline void backend_of(struct backend *backend, const struct flow *f, const struct tuple *key)
{
	bool back = f->flags & FLOW_REPLY;
	backend->address = back ? key->source : f->to.destination;
	backend->port = back ? key->source_port : f->to.destination_port;
}

/* Move what a flow counted, that `key` found, to `usage`, and a connection with it. `other` is its other direction, or
 * NULL. */
static __always_inline void flush(struct flow *f, struct flow *other, const struct tuple *key, bool connection)
{
	struct usage more = { .connections = connection, .packets = f->packets, .bytes = f->bytes };
	struct member member = { .set = f->service };
	if (!f->service || (f->flags & FLOW_DIRECT)) /* the backend's node sees both directions, and counts them */
		return;
	if (other) {
		more.packets += other->packets;
		more.bytes += other->bytes;
		other->packets = 0;
		other->bytes = 0;
	}
	if (!more.packets && !connection)
		return;
	f->packets = 0;
	f->bytes = 0;
	backend_of(&member.backend, f, key);
	struct usage *sum = usage.lookup(&member);
	if (!sum) {
		usage.update(&member, &more);
		return;
	}
	sum->connections += more.connections;
	sum->packets += more.packets;
	sum->bytes += more.bytes;
}
