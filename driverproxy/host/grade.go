package host

import "time"

// grade is what is wrong with a device, which says how it is found usable again.
type grade int

const (
	gradeNone       grade = iota
	gradeLocked           // the phone is locked
	gradeUntrusted        // the phone does not trust this Mac
	gradeAutomation       // Remote Automation or Web Inspector is off
	gradeAbsent           // the driver does not find the phone, or does not say what is wrong with it
	gradePaired           // another driver process holds the phone
	gradeCrashes          // the driver dies again and again
	gradeStart            // the driver, or what it needs, cannot be started
	gradeSlowDriver       // the driver answers late, or not ready
	gradeSlowStart        // New Session takes long
	gradeWiped            // what a session left could not be removed
	gradePlatform         // the device's kind does not run on this system
	grades                // how many there are
)

// proof is a set of things that a probe shows.
type proof uint8

const (
	proofStatus  proof = 1 << iota // the driver answered GET /status with ready, in time; every good probe shows it
	proofSession                   // the driver started a session, in time
	proofAlone                     // no driver of an earlier agent runs
	proofWiped                     // nothing is left of earlier sessions
)

// Times of a device that are the same for all grades.
const (
	probeEvery = 10 * time.Second // of a ready device
	retryEvery = time.Second      // after a bad probe that does not quarantine the device yet
	relapse    = 15 * time.Minute // a device that is quarantined again so soon after its readmission waits longer
)

// rule is how a grade is come to and got over.
type rule struct {
	what, todo  string        // for the operator: what is wrong, and what to do; nobody's session is quoted
	strikes     int           // this many quarantine the device
	within      time.Duration // of so much time; 0: in a row, which a good result that shows one of clears ends
	clears      proof
	first, most time.Duration // from quarantine to the first probe; it doubles with each bad one, up to most. 0: it is not probed
	goods       int           // good probes in a row that readmit the device, first apart
	needs       proof         // what a good one must show beside its status
}

// rule is the table of the grades. README.md has it for operators.
func (g grade) rule() rule {
	const s, m = time.Second, time.Minute
	return [grades]rule{
		gradeLocked: {what: "the iPhone is locked", todo: "unlock it, and set Auto-Lock to Never",
			strikes: 1, first: 10 * s, most: 2 * m, goods: 1, needs: proofSession},
		gradeUntrusted: {what: "the iPhone does not trust this Mac", todo: "unlock it and tap Trust",
			strikes: 1, first: 30 * s, most: 5 * m, goods: 1, needs: proofSession},
		gradeAutomation: {what: "automation is off",
			todo:    "on the iPhone, turn on Remote Automation and Web Inspector in Settings > Apps > Safari > Advanced; on the Mac, run safaridriver --enable",
			strikes: 1, first: 30 * s, most: 5 * m, goods: 1, needs: proofSession},
		gradeAbsent: {what: "the driver does not find the iPhone", todo: "check its cable, that it is on, and its udid",
			strikes: 2, clears: proofSession, first: 10 * s, most: 5 * m, goods: 1, needs: proofSession},
		gradePaired: {what: "already paired with another WebDriver session",
			todo:    "leftover safaridriver processes are killed by themselves; if it stays, end what else drives the iPhone from this Mac",
			strikes: 1, first: 2 * s, most: 2 * m, goods: 1, needs: proofSession | proofAlone},
		gradeCrashes: {what: "the driver died 3 times within 5 minutes", todo: "if it stays, see its crash reports on the Mac and restart the iPhone",
			strikes: 3, within: 5 * m, first: 30 * s, most: 10 * m, goods: 2, needs: proofSession},
		gradeStart: {what: "the driver cannot be started", todo: "see the log of driverhost",
			strikes: 3, clears: proofStatus, first: 30 * s, most: 10 * m, goods: 1},
		gradeSlowDriver: {what: "slow: 3 times in a row the driver did not say in time that it is ready", todo: "if it stays, see what else runs on the Mac",
			strikes: 3, clears: proofStatus, first: 30 * s, most: 5 * m, goods: 2},
		gradeSlowStart: {what: "slow: 3 times in a row it took long to start a session", todo: "if it stays, restart the iPhone",
			strikes: 3, clears: proofSession, first: 30 * s, most: 5 * m, goods: 1, needs: proofSession},
		gradeWiped: {what: "clean-up failed after a session", todo: "it is repeated by itself; if it stays, see the log of driverhost",
			strikes: 1, first: 30 * s, most: 10 * m, goods: 1, needs: proofWiped},
		gradePlatform: {what: "safaridriver needs macOS", todo: "configure another kind", strikes: 1},
	}[g]
}

// reason is what operators are told of a quarantined device.
func (r rule) reason() string { return r.what + ": " + r.todo }

// delay is the wait before the next probe after n bad ones.
func (r rule) delay(n int) time.Duration {
	d := r.first
	for ; n > 0 && d < r.most; n-- {
		d *= 2
	}
	return min(d, r.most)
}
