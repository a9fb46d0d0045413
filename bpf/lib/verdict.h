/* How a program ends: every packet passes through finish() or drop(), which count it and leave the outcome in
 * skb->cb, where BPF_PROG_TEST_RUN shows it. */

static __always_inline int finish(struct __sk_buff *skb, __u32 hook, __u32 outcome, __u32 ifindex, int verdict)
{
	__u32 index = hook * OUTCOME_MAX + outcome;
	struct counter *counter = forwards.lookup(&index);
	if (counter) {
		counter->packets++;
		counter->bytes += skb->len;
	}
	skb->cb[0] = outcome;
	skb->cb[2] = ifindex;
	return verdict;
}

/* Leave in skb->cb which rule decided, for the sample and for who runs the program on a packet of his own. */
static __always_inline void name_rule(struct __sk_buff *skb, __u64 rule)
{
	skb->cb[3] = rule;
	skb->cb[4] = rule >> 32;
}

/* Which rule decided; what is in skb->cb before a policy was asked is somebody else's. */
static __always_inline __u64 named_rule(struct __sk_buff *skb, __u32 reason)
{
	bool decided = reason == DROP_POLICY_EGRESS || reason == DROP_POLICY_INGRESS || reason == DROP_AUDITED;
	return decided ? skb->cb[3] | (__u64)skb->cb[4] << 32 : 0;
}

static __always_inline void sample_drop(struct __sk_buff *skb, __u32 hook, __u32 reason, const struct tuple *tuple)
{
	__u32 zero = 0;
	__u64 *sequence = drop_sequence.lookup(&zero);
	if (!sequence)
		return;
	__u64 number = __sync_fetch_and_add(sequence, 1) + 1;
	__u32 index = number % DROP_SAMPLES;
	struct drop_sample *sample = drop_samples.lookup(&index);
	if (!sample)
		return;
	sample->sequence = 0; /* a reader skips what is half written */
	sample->seen_ns = bpf_ktime_get_ns();
	sample->tuple = *tuple;
	sample->ifindex = skb->ifindex;
	sample->length = skb->len;
	sample->hook = hook;
	sample->reason = reason;
	sample->rule = named_rule(skb, reason);
	sample->sequence = number;
}

_Static_assert((DROP_MAX & (DROP_MAX - 1)) == 0, "drop() masks the reason, so that the verifier knows its bound");

/* Count a reason and keep a sample of the packet. */
static __always_inline void note(struct __sk_buff *skb, __u32 hook, __u32 reason, const struct tuple *tuple)
{
	__u32 index = hook * DROP_MAX + reason;
	struct counter *counter = drops.lookup(&index);
	if (counter) {
		counter->packets++;
		counter->bytes += skb->len;
	}
	sample_drop(skb, hook, reason, tuple);
}

/* The only way to drop a packet. `error` is -DROP_*. */
static __always_inline int drop(struct __sk_buff *skb, __u32 hook, int error, const struct tuple *tuple)
{
	__u32 reason = -error & (DROP_MAX - 1);
	note(skb, hook, reason, tuple);
	skb->cb[1] = reason;
	return finish(skb, hook, OUTCOME_DROP, 0, TC_ACT_SHOT);
}
