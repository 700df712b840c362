package host

import "testing"

// TestSigns has what safaridriver says, as its users quote it.
func TestSigns(t *testing.T) {
	const could = "Could not create a session: "
	const some = could + "Some devices were found, but could not be used:\n"
	for message, want := range map[string]grade{
		could + "The Safari instance is already paired with another WebDriver session.":                             gradePaired,
		could + "The Safari instance is already paired with a different session.":                                   gradePaired,
		some + "- Test phone (UDID-1): device is not paired":                                                        gradeUntrusted,
		some + "- Test phone (udid-1): Web Inspector is not enabled on device":                                      gradeAutomation,
		could + "Remote Automation is turned off (turn it on via Settings > Safari > Advanced > Remote Automation)": gradeAutomation,
		could + "The device is not configured to allow remote control via WebDriver. To fix this, toggle 'Allow Remote Automation' in " +
			"Safari's settings (Settings App > Safari > Advanced).": gradeAutomation,
		could + "You must enable 'Allow remote automation' in the Developer section of Safari Settings to control Safari via WebDriver.": gradeAutomation,
		some + "- Test phone (UDID-1): device is locked": gradeLocked,
		could + "Unlock Test phone to continue":          gradeLocked,
		some:                                             gradeAbsent,
		could + "Could not find any session hosts that match the requested capabilities.":          gradeAbsent,
		could + "The session timed out while connecting to a Safari instance.":                     gradeSlowStart,
		some + "- Another (UDID-2): device is locked\n- Test phone (UDID-1): device is not paired": gradeUntrusted,
		some + "- Another (UDID-2): device is locked":                                              gradeAbsent,
		could + "Automation is blocked by policy":                                                  gradeNone,
		"": gradeNone,
	} {
		if got := recognise(message, "UDID-1"); got != want {
			t.Errorf("%q is taken for grade %d, want %d", message, got, want)
		}
	}
}

func FuzzRecognise(f *testing.F) {
	f.Add("Could not create a session: Some devices were found, but could not be used:\n- a (b): c", "b")
	f.Fuzz(func(t *testing.T, message, udid string) {
		if g := recognise(message, udid); g < gradeNone || g >= grades {
			t.Errorf("grade %d", g)
		}
	})
}
