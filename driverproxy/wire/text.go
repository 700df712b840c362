package wire

import (
	"strings"
	"unicode"
)

// Text is what a host says in words, without what a database refuses (NUL) or a terminal obeys (control characters):
// one host's words are stored and shown beside those of all others.
func Text(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// clean passes the words of a host's message through Text.
func (c Control) clean() {
	if c.Hello != nil {
		c.Hello.Agent, c.Hello.Boot = Text(c.Hello.Agent), Text(c.Hello.Boot)
		for i := range c.Hello.Devices {
			c.Hello.Devices[i].clean()
		}
		for i := range c.Hello.Ended {
			c.Hello.Ended[i].Failure.clean()
		}
	}
	if c.Device != nil {
		c.Device.clean()
	}
	if c.Probed != nil {
		for i := range c.Probed.Devices {
			c.Probed.Devices[i].clean()
		}
	}
	if c.Assigned != nil {
		c.Assigned.Failure.clean()
	}
	if c.Released != nil {
		c.Released.Failure.clean()
	}
	if c.Ended != nil {
		c.Ended.Failure.clean()
	}
}

func (d *Device) clean() {
	for _, s := range []*string{&d.Name, &d.Kind, &d.Browser, &d.Model, &d.PlatformName, &d.PlatformVersion, &d.Country, (*string)(&d.State), &d.Reason} {
		*s = Text(*s)
	}
	labels := make(map[string]string, len(d.Labels))
	for k, v := range d.Labels {
		labels[Text(k)] = Text(v)
	}
	if d.Labels != nil {
		d.Labels = labels
	}
}

func (d *ProbedDevice) clean() {
	d.Name, d.State, d.Reason = Text(d.Name), DeviceState(Text(string(d.State))), Text(d.Reason)
}

// clean does nothing to nil.
func (f *Failure) clean() {
	if f != nil {
		f.Code, f.Message = FailureCode(Text(string(f.Code))), Text(f.Message)
	}
}
