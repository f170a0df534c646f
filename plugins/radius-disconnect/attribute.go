package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"layeh.com/radius"

	"github.com/billhook/billhook/plugins"
	"github.com/billhook/billhook/plugins/internal/fill"
)

// The formats of values.
const (
	formatString   = "string"
	formatInteger  = "integer"
	formatIPAddr   = "ipaddr"
	formatIPv6Addr = "ipv6addr"
	formatOctets   = "octets"
)

// Numbers of attributes that are made here.
const (
	typeVendorSpecific       = 26
	typeEventTimestamp       = 55
	typeMessageAuthenticator = 80
	typeErrorCause           = 101
	typeReplyText            = 18
)

// known is an attribute with a name.
type known struct {
	number byte
	format string
	// identifies is set for those that tell one session from others (RFC 5176, 3).
	identifies bool
}

func knownAttributes() map[string]known {
	return map[string]known{
		"User-Name":                {1, formatString, true},
		"NAS-IP-Address":           {4, formatIPAddr, false},
		"NAS-Port":                 {5, formatInteger, true},
		"Service-Type":             {6, formatInteger, false},
		"Framed-IP-Address":        {8, formatIPAddr, true},
		"Filter-Id":                {11, formatString, false},
		"Reply-Message":            {typeReplyText, formatString, false},
		"State":                    {24, formatOctets, false},
		"Class":                    {25, formatOctets, false},
		"Session-Timeout":          {27, formatInteger, false},
		"Idle-Timeout":             {28, formatInteger, false},
		"Called-Station-Id":        {30, formatString, true},
		"Calling-Station-Id":       {31, formatString, true},
		"NAS-Identifier":           {32, formatString, false},
		"Acct-Session-Id":          {44, formatString, true},
		"Acct-Terminate-Cause":     {49, formatInteger, false},
		"Acct-Multi-Session-Id":    {50, formatString, true},
		"Acct-Interim-Interval":    {85, formatInteger, false},
		"NAS-Port-Id":              {87, formatString, true},
		"Framed-Pool":              {88, formatString, false},
		"Chargeable-User-Identity": {89, formatString, true},
		"NAS-IPv6-Address":         {95, formatIPv6Addr, false},
		"Framed-IPv6-Address":      {168, formatIPv6Addr, true},
	}
}

// attribute is an Attribute that was read.
type attribute struct {
	name     string // for people
	vendor   uint32
	number   byte
	format   string
	known    known
	optional bool
	value    *fill.Template
}

// readAttribute returns the field that an error is about.
func readAttribute(a Attribute) (x attribute, field string, err error) {
	x = attribute{name: a.Name, vendor: a.Vendor, number: byte(a.Type), format: a.Format, optional: a.Optional}
	switch {
	case a.Name != "" && (a.Type != 0 || a.Vendor != 0):
		return x, "name", errors.New("it stands beside type or vendor: keep one of the two")
	case a.Name != "":
		all := knownAttributes()
		k, ok := all[a.Name]
		if !ok {
			return x, "name", fmt.Errorf("there is no attribute of that name here: give type, or vendor and type, as numbers, or one of %s", strings.Join(sorted(all), ", "))
		}
		x.known, x.number = k, k.number
		if x.format == "" {
			x.format = k.format
		}
	case a.Type == 0:
		return x, "", errors.New("it has neither a name nor a type")
	case a.Vendor == 0 && slices.Contains([]int{2, 3, typeVendorSpecific, typeEventTimestamp, 60, typeMessageAuthenticator}, a.Type):
		return x, "type", errors.New("this one cannot be given: use vendor for attributes of vendors; Event-Timestamp and Message-Authenticator are made by themselves")
	case a.Vendor != 0:
		x.name = fmt.Sprintf("attribute %d of vendor %d", a.Type, a.Vendor)
	default:
		x.name = fmt.Sprintf("attribute %d", a.Type)
	}
	if x.format == "" {
		x.format = formatString
	}
	x.value, err = fill.Parse(a.Value)
	return x, "value", err
}

func sorted(all map[string]known) []string {
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// identifies reports whether the attribute says which session is meant. Of attributes
// that have no name here it is believed.
func (a attribute) identifies() bool {
	return !a.optional && (a.known.identifies || a.known == known{})
}

func (a attribute) wireType() radius.Type {
	if a.vendor != 0 {
		return typeVendorSpecific
	}
	return radius.Type(a.number)
}

// make returns the value as it is sent and as it is shown; nil when the attribute is
// to be left out.
func (a attribute) make(doc map[string]any) (radius.Attribute, string, error) {
	text, err := a.value.Text(doc)
	if err != nil {
		return nil, "", err
	}
	if a.optional && strings.TrimSpace(text) == "" {
		return nil, "", nil
	}
	if text, err = a.value.Line(doc); err != nil {
		return nil, "", err
	}
	value, err := encode(a.format, text)
	if err == nil && a.vendor != 0 {
		value, err = vendorSpecific(a.vendor, a.number, value)
	}
	if err != nil {
		return nil, "", plugins.Permanent(plugins.Because(plugins.CausePayload, fmt.Errorf("%s: %w", a.name, err)))
	}
	return value, text, nil
}

// encode writes a value as RADIUS has it.
func encode(format, text string) (radius.Attribute, error) {
	switch format {
	case formatString:
		if len(text) > 253 {
			return nil, fmt.Errorf("%d bytes, and an attribute holds 253 at most", len(text))
		}
		return radius.Attribute(text), nil
	case formatInteger:
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, errors.New("it is no integer from 0 to 4294967295")
		}
		return radius.NewInteger(uint32(n)), nil
	case formatIPAddr:
		ip, err := netip.ParseAddr(hostOf(text))
		if err != nil || !ip.Unmap().Is4() {
			return nil, errors.New("it is no IPv4 address")
		}
		b := ip.Unmap().As4()
		return b[:], nil
	case formatIPv6Addr:
		ip, err := netip.ParseAddr(hostOf(text))
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return nil, errors.New("it is no IPv6 address")
		}
		b := ip.As16()
		return b[:], nil
	case formatOctets:
		b, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
		if err != nil || len(b) == 0 || len(b) > 253 {
			return nil, errors.New("it is not 1 to 253 bytes in hexadecimal")
		}
		return b, nil
	}
	return nil, fmt.Errorf("there is no format %s", format)
}

// hostOf takes off the length of a host's prefix, with which Postgres writes an inet
// column cast to text.
func hostOf(text string) string {
	host, bits, ok := strings.Cut(text, "/")
	if ok && (bits == "32" || bits == "128") {
		return host
	}
	return text
}

// vendorSpecific puts a value into Vendor-Specific, with numbers of one byte as nearly
// all vendors have them.
func vendorSpecific(vendor uint32, number byte, value radius.Attribute) (radius.Attribute, error) {
	const most = 253 - 4 - 2
	if len(value) > most {
		return nil, fmt.Errorf("%d bytes, and an attribute of a vendor holds %d at most", len(value), most)
	}
	return radius.NewVendorSpecific(vendor, append(radius.Attribute{number, byte(len(value) + 2)}, value...))
}
