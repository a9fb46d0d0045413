/* Services: frontend -> endpoint set -> one slot. */

static __always_inline struct service *service_of(const struct address *address, __be16 port, __u8 protocol)
{
	struct frontend frontend = { .address = *address, .port = port, .protocol = protocol };
	return services.lookup(&frontend);
}

/* What an address is (enum mark); 0: nothing that we know. */
static __always_inline __u16 marks_of(const struct address *address)
{
	struct service *found = service_of(address, 0, 0);
	return found ? found->marks : 0;
}

/* The NodePort that a port of this node is. */
static __always_inline struct service *nodeport_of(const struct tuple *t)
{
	struct address any = {};
	if (is_mapped(&t->destination))
		map_ipv4(&any, 0);
	return service_of(&any, t->destination_port, t->protocol);
}

/* Point `to` at a backend when the destination is a service. Returns 0 or -DROP_*. */
static __always_inline int choose_backend(struct flow *f, __u32 hook)
{
	struct service *service = service_of(&f->to.destination, f->to.destination_port, f->to.protocol);
	if (!service) {
		__u16 marks = marks_of(&f->to.destination);
		if (marks & MARK_CLUSTER_IP)
			return -DROP_UNDEFINED_PORT;
		if (marks & MARK_NODEPORTS)
			service = nodeport_of(&f->to);
		if (!service)
			return 0;
	}
	__u64 id = hook == HOOK_FROM_NETWORK ? service->outside : service->inside;
	f->service = id;
	/* Between reading the count and reading the slot, the last slot may go: once more, with the new count. */
#pragma unroll
	for (int attempt = 0; attempt < 2; attempt++) {
		struct set *set = sets.lookup(&id);
		if (!set)
			return -DROP_NO_SLOT;
		struct slot slot = { .set = id, .generation = set->generation };
		__u32 count = set->count;
		if (count == 0)
			return set->flags & SET_ELSEWHERE ? -DROP_NO_LOCAL_ENDPOINTS : -DROP_NO_ENDPOINTS;
		slot.index = ((__u64)bpf_get_prandom_u32() * count) >> 32;
		struct backend *backend = slots.lookup(&slot);
		if (backend) {
			f->to.destination = backend->address;
			f->to.destination_port = backend->port;
			f->flags |= FLOW_NAT;
			return 0;
		}
	}
	return -DROP_NO_SLOT;
}

/* A pod that reaches itself must not see its own address as the client's, or it would answer past us: the service's
 * address stands in (the answer comes back to it, and to us). */
static __always_inline void source_hairpin(struct flow *f, const struct tuple *key)
{
	if ((f->flags & FLOW_NAT) && same_address(&f->to.destination, &f->to.source))
		f->to.source = key->destination;
}
