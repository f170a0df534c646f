package doctor

import "time"

// Impatient returns options with which every open transaction is an old one.
func (o Options) Impatient() Options {
	o.patience = time.Nanosecond
	return o
}

// Skew judges a difference between the clocks.
func Skew(d time.Duration) []Finding {
	r := &report{}
	r.skew(d)
	return r.list
}
