package place

import (
	"fmt"
	"regexp"
)

// What the hosts of R2's buckets end in, after the id of the account. Buckets of the jurisdiction eu are behind a host of their own, where nothing
// else is; there is none of the US: its buckets are on the default host. Source: https://developers.cloudflare.com/r2/reference/data-location/
const (
	R2EU = ".eu.r2.cloudflarestorage.com"
	R2US = ".r2.cloudflarestorage.com"
)

// The names below are compared as they are written: lower-case letters, no dot at the end, no port. There is one spelling of each that is taken, so
// that what was looked at is what is connected to.
var (
	neonHost    = regexp.MustCompile(`^ep-[a-z0-9]+(?:-[a-z0-9]+)*(?:\.c-[0-9]+)?\.([a-z0-9-]+)\.(aws|azure)\.neon\.tech$`)
	upstashHost = regexp.MustCompile(`^(eu1|eu2)-[a-z0-9]+(?:-[a-z0-9]+)*\.upstash\.io$`)
	sentryHost  = regexp.MustCompile(`^o[0-9]+\.ingest\.de\.sentry\.io$`)
)

// neonEU are Neon's regions in the EU. London (eu-west-2) is called after the EU and not in it. Source:
// https://neon.com/docs/introduction/regions
var neonEU = map[string]string{"eu-central-1.aws": "DE"}

// NeonHost is where a database of Neon is, by its host's name, which says the region. The error says what is taken.
func NeonHost(host string) (EULocation, error) {
	m := neonHost.FindStringSubmatch(host)
	if m == nil {
		return EULocation{}, fmt.Errorf("%q is no host of Neon in the EU: use one like ep-NAME-ID.eu-central-1.aws.neon.tech, in lower case and without a dot at its end", host)
	}
	region := m[1] + "." + m[2]
	if country, ok := neonEU[region]; ok {
		return InEU(country)
	}
	return EULocation{}, fmt.Errorf("%q is in Neon's region %s, which is not in the EU (eu-west-2 is London): use one like ep-NAME-ID.eu-central-1.aws.neon.tech", host, region)
}

// UpstashHost is where a cache of Upstash is, by its host's name: those of one region begin with it. The names of global ones do not say where these are,
// and are not taken.
func UpstashHost(host string) (EULocation, error) {
	switch m := upstashHost.FindStringSubmatch(host); {
	case m == nil:
		return EULocation{}, fmt.Errorf("%q is no host of Upstash that says that it is in the EU: use one that begins with eu1- (IE) or eu2- (DE); the names of global databases do not tell", host)
	case m[1] == "eu1":
		return InEU("IE")
	default:
		return InEU("DE")
	}
}

// SentryHost is where a host takes error events for Sentry. Those of organisations whose data is in the EU have de in their name. Source:
// https://docs.sentry.io/organization/data-storage-location/
func SentryHost(host string) (EULocation, error) {
	if !sentryHost.MatchString(host) {
		return EULocation{}, fmt.Errorf("%q is no host of Sentry's EU region: use the DSN of an organisation there, with a host like oNUMBER.ingest.de.sentry.io; oNUMBER.ingest.us.sentry.io and oNUMBER.ingest.sentry.io are in the US", host)
	}
	return InEU("DE")
}
