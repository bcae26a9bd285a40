import { call, setLoggedOutListener } from "./api.js";
import { byId, setText } from "./dom.js";
import { Library } from "./library.js";
import { Search } from "./search.js";
import { Session } from "./session.js";
import { errorText } from "./text.js";

/** @type {Session | null} null: nobody is logged in */
let session = null;
const search = new Search();
const library = new Library((choice) => session?.startJob(choice) ?? Promise.resolve());

/** @param {any} user null: show the login */
function show(user) {
  session?.end();
  byId("login").hidden = user !== null;
  byId("app").hidden = user === null;
  search.clear();
  session = user && new Session(user, library, search);
  if (!user) byId("username").focus();
}

byId("login-form").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  setText(byId("login-error"), "");
  const [username, password] = [byId("username"), byId("password")];
  try {
    const { user } = await call("POST", "/login", {
      username: username.value,
      password: password.value,
    });
    password.value = "";
    show(user);
  } catch (error) {
    setText(byId("login-error"), errorText(error));
    password.select();
  }
});
byId("logout").addEventListener("click", async () => {
  await call("POST", "/logout").catch(console.warn);
  show(null);
});
setLoggedOutListener(() => session && show(null));

try {
  show((await call("GET", "/me")).user);
} catch (error) {
  show(null);
  if (/** @type {any} */ (error).status !== 401) setText(byId("login-error"), errorText(error));
}
