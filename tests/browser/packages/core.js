import { connect } from "semantik-realtime";

connect().watch("job:1", { onChange: (view) => console.log(view) });
