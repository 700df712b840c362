package host

import "strings"

// sign is a part of what safaridriver says when it refuses a session, and what it means.
type sign struct {
	text  string
	means grade
}

// signs is all that is known of safaridriver's words; nobody documents them. The first that fits counts. Where a source is named,
// it quotes the text; the others are quoted by users of iPhones with iOS 16 to 26.
func signs() []sign {
	return []sign{
		{"already paired with another webdriver session", gradePaired}, // SeleniumHQ/selenium#5057
		{"already paired with a different session", gradePaired},       // newer versions
		{"is not paired", gradeUntrusted},                              // "- NAME (UDID): device is not paired": never trusted, or reset
		{"not trusted", gradeUntrusted},
		{"remote automation is turned off", gradeAutomation},        // on the phone: also after it restarted, or a session ended badly
		{"not configured to allow remote control", gradeAutomation}, // appium/appium-safari-driver, test/functional/mobile-driver-e2e-specs.js
		{"web inspector is not enabled", gradeAutomation},
		{"allow remote automation", gradeAutomation}, // on the Mac
		// No quotation was found for a locked phone, only that it has to be unlocked (webkit.org/blog/9395): whatever says so has
		// one of these.
		{"is locked", gradeLocked}, {"passcode", gradeLocked}, {"unlock", gradeLocked},
		{"could not find any session hosts", gradeAbsent},                   // nightwatchjs/nightwatch, lib/transport/errors
		{"devices were found, but could not be used", gradeAbsent},          // the same; without a reason behind it for a moment after a start or a session
		{"timed out while connecting to a safari instance", gradeSlowStart}, // flutter/flutter#163790
	}
}

// recognise finds what the message says of the device. It lists all devices of the Mac, a line each: what it says of others is left out.
func recognise(message, udid string) grade {
	var ours []string
	for line := range strings.Lines(strings.ToLower(message)) {
		if !strings.HasPrefix(line, "- ") || udid == "" || strings.Contains(line, strings.ToLower(udid)) {
			ours = append(ours, line)
		}
	}
	text := strings.Join(ours, "")
	for _, s := range signs() {
		if strings.Contains(text, s.text) {
			return s.means
		}
	}
	return gradeNone
}
